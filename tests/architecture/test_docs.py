"""What users can touch is in the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from wkhost.cli.main import cli
from wkhost.config.settings import PLACES
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
