"""The command line: which server it is about, and how mistakes look."""

from __future__ import annotations

from pathlib import Path

import pytest

from wkhost import __version__
from wkhost.cli.main import COMMANDS, main
from wkhost.cli.run import banner
from wkhost.cli.session import Session, plain
from wkhost.config import Settings
from wkhost.errors import ConfigError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WK_CONFIG", raising=False)


def test_version_and_help_are_there(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wkhost {__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, sentence) in COMMANDS.items():
        assert name in text
        assert sentence in text


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["plugin", "info"]])
def test_wrong_use_exits_2_with_a_hint(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    assert "Usage: wkhost" in capsys.readouterr().err


def test_a_failure_exits_1_with_one_sentence(capsys: Capture) -> None:
    assert main(["plugin", "info", "nobody"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "wkhost: nobody: not installed\n"


def test_a_wrong_configuration_is_one_sentence_for_every_command(
    tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("cluster: {nodeId: 9999}")
    for command in (["plugin", "list"], ["run"]):
        assert main(["--config", str(file), *command]) == 1
        error = capsys.readouterr().err
        assert "cluster.nodeId is '9999', expected a whole number from 1 to 1023" in error
        assert error.count("\n") == 1


def test_the_file_is_the_flag_else_the_variable_else_wk_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Session(None).config_file() is None
    (tmp_path / "wk.yaml").write_text("mode: test")
    assert Session(None).config_file() == Path("wk.yaml")
    assert Session(None).settings().mode == "test"
    monkeypatch.setenv("WK_CONFIG", "variable.yaml")
    assert Session(None).config_file() == Path("variable.yaml")
    assert Session(Path("flag.yaml")).config_file() == Path("flag.yaml")
    with pytest.raises(ConfigError, match=r"variable\.yaml does not exist"):
        Session(None).settings()


def test_warnings_go_to_stderr(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "wk.yaml").write_text("pprofOn: true")
    assert main(["plugin", "list", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert "pprofOn" in captured.err


def test_text_of_plugins_cannot_move_the_cursor() -> None:
    assert plain("a\x1b[2Jb\u202ec\nd") == "a\\x1b[2Jb\\u202ec\nd"


def test_the_banner_says_what_listens_and_what_to_try() -> None:
    listening = {"tcp": "0.0.0.0:5100", "http": "0.0.0.0:5001"}
    text = "\n".join(banner(Settings(), listening, [], "wkhost"))
    assert "0.0.0.0:5100" in text
    assert "curl http://127.0.0.1:5001/health" in text
    assert "wkhost plugin install moderation" in text
    assert "secure" not in text
    text = "\n".join(banner(Settings(), listening, ["moderation"], "bin/wkhost --config x"))
    assert "plugin install moderation" not in text
    assert "bin/wkhost --config x plugin list" in text


def test_the_banner_names_the_configuration_file_that_was_used(tmp_path: Path) -> None:
    assert "--config" not in Session(None).program()
    assert Session(Path("other.yaml")).program().endswith("wkhost --config other.yaml")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    assert main(["run", "--root-dir", "file/below"]) == 1
    assert "rootDir is 'file/below'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ExceptionGroup("x", [ExceptionGroup("y", [ConfigError("a is b")])]), 1, "a is b"),
        (BaseExceptionGroup("x", [KeyboardInterrupt()]), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/data"), 1, "/data: Permission denied"),
    ],
)
def test_errors_of_the_outside_are_sentences_even_in_groups(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wkhost.cli.main.cli.main", fail)
    assert main([]) == code
    assert said in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExceptionGroup("x", [ConfigError("a"), ZeroDivisionError()])

    monkeypatch.setattr("wkhost.cli.main.cli.main", fail)
    with pytest.raises(ExceptionGroup):
        main([])
