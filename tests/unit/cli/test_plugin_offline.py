"""`wkhost plugin` while the server is stopped: acts on the data directory, says the same."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.server import agreed
from wkhost.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WK_CONFIG", raising=False)


def run(capsys: Capture, *arguments: str) -> str:
    """Run a command that must work; an install is agreed to."""
    more = agreed(arguments[1:]) if arguments[0] == "install" else []
    code = main(["plugin", *arguments, *more])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def run_json(capsys: Capture, *arguments: str) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


def test_a_new_plugin_installs_as_it_is(capsys: Capture, tmp_path: Path) -> None:
    assert "wkhost plugin install hello" in run(capsys, "new", "hello")
    assert (tmp_path / "hello/plugin.toml").is_file()
    status = run_json(capsys, "install", "hello")
    assert (status["no"], status["enabled"], status["state"]) == ("hello", True, "stopped")
    (listed,) = run_json(capsys, "list")
    assert listed == status
    assert run_json(capsys, "info", "hello") == status
    assert "hello" in run(capsys, "list")
    assert "send" in run(capsys, "info", "hello")


def test_an_install_from_inside_the_plugin_finds_no_server_and_says_so(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "new", "hello")
    monkeypatch.chdir(tmp_path / "hello")
    for action in ("inspect", "install"):
        assert main(["plugin", action, "."]) == 1
        assert "run this where the server runs" in capsys.readouterr().err
    assert not (tmp_path / "hello/wkhost-data").exists()


def test_new_overwrites_nothing_and_names_a_bad_name(capsys: Capture) -> None:
    run(capsys, "new", "hello")
    for name, word in (("hello", "exists"), ("Not Good", "name")):
        assert main(["plugin", "new", name]) == 1
        assert word in capsys.readouterr().err


def test_enable_and_disable_are_remembered(capsys: Capture) -> None:
    run(capsys, "new", "hello")
    assert run_json(capsys, "install", "hello", "--disabled")["state"] == "disabled"
    assert run_json(capsys, "order") == {}
    assert run_json(capsys, "enable", "hello")["enabled"]
    assert [each["no"] for each in run_json(capsys, "order")["send"]] == ["hello"]
    assert "stage guard" in run(capsys, "order")
    assert run(capsys, "disable", "hello").strip() == "hello 0.1.0 disabled"
    assert not run_json(capsys, "info", "hello")["enabled"]


def test_a_second_install_keeps_the_place_and_uninstall_removes_the_files(
    capsys: Capture, tmp_path: Path
) -> None:
    run(capsys, "new", "hello")
    run(capsys, "install", "hello")
    manifest = tmp_path / "hello/plugin.toml"
    manifest.write_text(manifest.read_text().replace("0.1.0", "0.2.0"))
    assert run_json(capsys, "install", "hello")["version"] == "0.2.0"
    assert len(run_json(capsys, "list")) == 1
    assert run_json(capsys, "uninstall", "hello") == {"no": "hello", "uninstalled": True}
    assert run_json(capsys, "list") == []
    assert not list((tmp_path / "wkhost-data/plugins").glob("hello/*"))


def test_an_order_that_cannot_be_is_refused_at_install(capsys: Capture, tmp_path: Path) -> None:
    for name, other in (("first", "second"), ("second", "first")):
        run(capsys, "new", name)
        manifest = tmp_path / name / "plugin.toml"
        manifest.write_text(manifest.read_text().replace("[run]", f'before = ["{other}"]\n\n[run]'))
    run(capsys, "install", "first")
    assert main(["plugin", "install", "second", *agreed(["second"])]) == 1
    assert "cycle" in capsys.readouterr().err
    assert [each["no"] for each in run_json(capsys, "list")] == ["first"]


def test_nothing_is_installed_that_nobody_has_agreed_to(capsys: Capture, tmp_path: Path) -> None:
    run(capsys, "new", "hello")
    assert main(["plugin", "install", "hello"]) == 1
    told = capsys.readouterr().err
    assert "hook.send.payload (to read and replace the content" in told
    assert "--yes --digest sha256:" in told
    assert main(["plugin", "install", "hello", "--yes"]) == 2
    assert "expected one --digest" in capsys.readouterr().err
    _, digest = agreed(["hello"])[1:]
    (tmp_path / "hello/more.txt").write_text("changed while the operator was reading")
    assert main(["plugin", "install", "hello", "--yes", "--digest", digest]) == 1
    assert "not what you agreed to" in capsys.readouterr().err
    assert run_json(capsys, "list") == []
    assert not list((tmp_path / "wkhost-data/plugins").glob("hello*"))


@pytest.mark.parametrize(
    ("typed", "code"), [("yes\n", 0), ("\n\nyes\n", 0), ("no\n", 1), ("\n", 130)]
)
def test_a_person_is_asked_and_silence_is_no_answer(
    typed: str, code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "new", "hello")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert main(["plugin", "install", "hello"]) == code
    shown = capsys.readouterr()
    assert "decide about messages before they are accepted" in shown.out
    assert len(run_json(capsys, "list")) == (code == 0)


def test_rights_can_be_withheld_granted_and_revoked(capsys: Capture) -> None:
    run(capsys, "new", "hello")
    run(capsys, "install", "hello", "--without", "hook.send.payload")

    def rights() -> dict[str, bool]:
        return {r["name"]: r["granted"] for r in run_json(capsys, "versions", "hello")["rights"]}

    assert rights() == {"hook.send": True, "hook.send.payload": False}
    run(capsys, "grant", "hello", "hook.send.payload")
    assert rights() == {"hook.send": True, "hook.send.payload": True}
    run(capsys, "revoke", "hello", "hook.send")
    assert rights() == {"hook.send": False, "hook.send.payload": False}
    assert main(["plugin", "grant", "hello", "egress:example.com:443"]) == 1
    assert "does not ask for" in capsys.readouterr().err
    assert "denied" in run(capsys, "versions", "hello")


def test_what_comes_with_wkhost_is_agreed_to_by_its_name(capsys: Capture) -> None:
    assert run_json(capsys, "install", "moderation")["enabled"]
    assert run_json(capsys, "inspect", "moderation")["builtin"]


@pytest.mark.parametrize("action", ["reload", "logs", "rollback", "upgrade"])
def test_what_needs_a_server_says_how_to_start_one(action: str, capsys: Capture) -> None:
    assert main(["plugin", action, "hello"]) == 1
    assert "start one with `wkhost run`" in capsys.readouterr().err


def test_install_names_what_it_expected(capsys: Capture) -> None:
    assert main(["plugin", "install", "nowhere"]) == 1
    assert "expected a folder" in capsys.readouterr().err
    assert main(["plugin", "install"]) == 2
    assert "--builtin" in capsys.readouterr().err
