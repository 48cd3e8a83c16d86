"""Plugins made on the fly: moderation from the package, and empty ones that only cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MODERATION = "moderation"

_MANIFEST = """\
[plugin]
no = "{no}"
version = "1.0.0"
description = "Lets every message pass; made for a measurement."

[run]
main = "main.py"

[hooks.send]
payload = true
"""

_CODE = """\
from plugin_sdk import Message, Plugin, hook


class Empty(Plugin):
    @hook
    def send(self, message: Message) -> None:
        return None
"""


def write_empty_plugin(parent: Path, no: str) -> Path:
    """Write a plugin whose `send` does nothing into a folder of `parent`; return the folder."""
    folder = parent / no
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(_CODE, encoding="utf-8")
    (folder / "plugin.toml").write_text(_MANIFEST.format(no=no), encoding="utf-8")
    return folder


def plugin_sources(parent: Path, count: int) -> list[str]:
    """Return what to install for `count` plugins: moderation first, then empty ones."""
    if not count:
        return []
    empty = [write_empty_plugin(parent, f"empty{n}") for n in range(1, count)]
    return [MODERATION, *map(str, empty)]


def in_chain_order(numbers: Iterable[str]) -> list[str]:
    """Return plugins in the order they are asked: moderation is a guard and comes first."""
    return sorted(numbers, key=lambda no: (no != MODERATION, no))
