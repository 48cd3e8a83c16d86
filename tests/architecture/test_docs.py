"""What users can touch is in the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from plugin_sdk import Continue, Refuse
from plugin_sdk.testing import SyncPluginTest
from wkhost.cli.main import cli
from wkhost.config.places import PLACES
from wkhost.hooks.chain import Chain

ROOT = Path(__file__).parents[2]


def docs() -> str:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def commands(group: click.Group, prefix: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


@pytest.mark.parametrize("command", list(commands(cli, "wkhost")))
def test_every_command_is_documented(command: str) -> None:
    assert command in docs()


def test_every_command_and_option_has_help() -> None:
    def check(command: click.Command, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.opts}"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                check(child, f"{path} {name}")

    check(cli, "wkhost")


def test_every_setting_is_documented_with_a_sentence() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for place in PLACES:
        assert f"`{place.spec.key}`" in page
        assert place.spec.doc.endswith("."), place.spec.key


def test_every_hook_is_documented() -> None:
    text = docs()
    for hook in Chain.__struct_fields__:
        if hook != "number":
            assert f"`{hook}`" in text


def test_every_command_that_the_docs_name_exists() -> None:
    known = set(commands(cli, "wkhost"))
    groups = {command.rpartition(" ")[0] for command in known}
    for text in re.findall(r"`(?:\$ )?(wkhost [a-z][^`\n]*)`", docs()):
        path, *words = text.split()
        while path in groups and words:
            path += f" {words.pop(0)}"
        assert path in known | groups, text


def test_the_plugin_of_the_readme_is_complete_and_works() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), names)
    with SyncPluginTest(names["Hello"]) as plugin:
        assert plugin.send(json.dumps({"type": 1, "content": "hi"}).encode()) == Continue()
        refused = plugin.send(json.dumps({"type": 1, "content": "spam"}).encode())
        assert refused == Refuse(20, "no spam, please")
