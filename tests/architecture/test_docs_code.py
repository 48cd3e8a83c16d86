"""The code, commands and tables of the documentation work as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from plugin_sdk import ChannelAnswer, Continue, Plugin, Refuse, Replace, UserAnswer, WebhookAnswer
from plugin_sdk.hooks import SPECS
from plugin_sdk.testing import SyncPluginTest
from plugin_sdk.types import Login
from wkhost.cli.main import cli
from wkhost.config.load import load_settings
from wkhost.plugin_host.config_schema import Setting
from wkhost.plugin_host.manifest import (
    Capabilities,
    HookSpec,
    Limits,
    Manifest,
    Sandbox,
    parse_manifest,
)

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "plugin_sdk/README.md",
        *(ROOT / "docs").glob("*.md"),
    )
)
GUIDE = "docs/plugin-guide.md"
HOOKS = "docs/hooks.md"
REST_OF_A_MANIFEST = b"""
[plugin]
no = "part"
version = "1.0.0"
[run]
main = "main.py"
"""
IN_OTHER_WORDS = {"login_policy", "from_beginning", "main", "command", "withheld", "type"}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@contextmanager
def page_as_module(page: str) -> Iterator[ModuleType]:
    """Run the Python blocks of a page as one module `main`, as the page's tests import it."""
    module = ModuleType("main")
    before = sys.modules.get("main")
    sys.modules["main"] = module
    try:
        for source in blocks(page, "python"):
            exec(compile(source, page, "exec"), module.__dict__)
        yield module
    finally:
        if before is None:
            del sys.modules["main"]
        else:
            sys.modules["main"] = before


@pytest.mark.parametrize("page", [GUIDE, HOOKS, "plugin_sdk/README.md"])
def test_the_python_of_a_page_runs_and_its_tests_pass(page: str) -> None:
    with page_as_module(page) as module:
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        plugins = [value for value in vars(module).values() if is_plugin(value)]
        assert plugins
        for test in tests:
            test()
        for plugin in plugins:
            with SyncPluginTest(plugin):
                pass
    if page == GUIDE:
        assert len(tests) >= 8


def is_plugin(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Plugin) and value is not Plugin


@pytest.mark.parametrize("page", PAGES)
def test_every_manifest_of_a_page_is_accepted(page: str) -> None:
    for block in blocks(page, "toml"):
        data = block.encode()
        parse_manifest(data if "[plugin]" in block else REST_OF_A_MANIFEST + data)


def test_every_field_of_the_manifest_is_in_the_guide() -> None:
    text = (ROOT / GUIDE).read_text(encoding="utf-8")
    for struct in (Manifest, HookSpec, Capabilities, Limits, Sandbox, Setting):
        for field in set(struct.__struct_fields__) - IN_OTHER_WORDS:
            assert re.search(rf"\b{field}\b", text), f"{struct.__name__}.{field}"


def test_every_hook_has_a_section_with_an_example() -> None:
    text = (ROOT / HOOKS).read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert set(sections) == set(SPECS)
    for name, section in sections.items():
        assert re.search(rf"def {name}\(self", section), name


Call = Callable[[SyncPluginTest], Any]
TEXT = b'{"type":1,"content":"hi"}'
LONG = Refuse(11, "at most 500 characters, please")
ANSWERS: list[tuple[str, Call, Any]] = [
    ("Shout", lambda t: t.send(TEXT), Replace.json({"type": 1, "content": "HI"})),
    ("Shout", lambda t: t.send(b"\x00"), Continue()),
    ("Shout", lambda t: t.send(TEXT.replace(b"hi", b"h" * 501)), LONG),
    (
        "NightRest",
        lambda t: t.channel_get("night-1", 2),
        ChannelAnswer(send_ban=True, ttl_ms=60_000),
    ),
    ("NightRest", lambda t: t.channel_get("day", 2), Continue()),
    (
        "Tickets",
        lambda t: t.user_get("u1", login=Login("d1", "ticket-of-u1", "::1")),
        UserAnswer(authenticated=True),
    ),
    ("Tickets", lambda t: t.user_get("u1", login=Login("d1", "no", "::1")), Refuse(2)),
    ("Quiet", lambda t: t.webhook("user.onlinestatus", []), WebhookAnswer.drop()),
    ("Careful", lambda t: t.config_update({}), "words: expected at least one"),
    ("Honest", lambda t: t.health(), None),
    ("Rotating", lambda t: t.secrets_update({"key": "value"}), None),
    ("Tidy", lambda t: t.stop("reload"), None),
]


@pytest.mark.parametrize(("name", "call", "answer"), ANSWERS)
def test_an_example_of_a_hook_answers_what_the_page_says(
    name: str, call: Call, answer: object
) -> None:
    with page_as_module(HOOKS) as module, SyncPluginTest(vars(module)[name]) as t:
        assert call(t) == answer


def test_the_observing_examples_keep_what_they_see() -> None:
    with page_as_module(HOOKS) as module:
        with SyncPluginTest(vars(module)["Archive"]) as t:
            t.persist_after([t.message(TEXT, message_id=7)])
            assert (t.plugin.data_dir / "archive.jsonl").read_text() == '[7, "hi"]\n'
        with SyncPluginTest(vars(module)["Bell"]) as t:
            t.receive(TEXT, uids=["u2"], message_id=7)
            assert t.host.kv[b"missed/u2"][0] == b"7"


def command_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "(?:sh|console)"):
            for line in block.splitlines():
                words = line.removeprefix("$ ")
                if re.match(r"(\S*/)?wkhost ", words):
                    yield page, words


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_a_command_line_of_a_page_is_understood(page: str, line: str) -> None:
    _, *words = shlex.split(line)
    parse(cli, "wkhost", words, None)


def parse(
    command: click.Command, name: str, words: list[str], parent: click.Context | None
) -> None:
    """Check words against commands and options; nothing is carried out."""
    try:
        context = command.make_context(name, words, parent=parent)
    except click.exceptions.Exit:
        return  # --help and --version
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if rest:
            found, child, rest = command.resolve_command(context, rest)
            assert child is not None
            parse(child, found or name, rest, context)


def test_the_configuration_of_the_operations_page_is_accepted(tmp_path: Path) -> None:
    (text,) = blocks("docs/operations.md", "yaml")
    file = tmp_path / "wk.yaml"
    for name in ("fullchain.pem", "privkey.pem"):
        (tmp_path / name).touch()
    file.write_text(text.replace("/etc/wkhost/tls", str(tmp_path)))
    settings, warnings = load_settings(file, {}, {})
    assert settings.manager_token == "change-me"
    assert warnings == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
