"""The guard under test: the moderation plugin of the package, with a switch for each fault.

Word lists, matching and policy are those of the package. What is added: a message with `SPIN`
keeps the handler busy for ever, and a version made with `crashing` ends while it starts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wkhost.bench.errors import BenchError
from wkhost.bench.plugins import MODERATION
from wkhost.plugin_host.package import builtin_folder

MASKED = "damn"
"""A word that the guard masks: a message that is stored with it has passed unmoderated."""
FORBIDDEN = "forbiddenword"
"""A word that the guard refuses: a message with it that is accepted has passed unmoderated."""
SPIN = "spinforever"
CODE = 11
"""The guard's own refusal."""

_CODE = """\
import os

from plugin_sdk import hook

from . import moderation_main


class Guard(moderation_main.Moderation):
    @hook
    def start(self):
        if {crashing}:
            print("cannot start today", flush=True)
            os._exit(3)
        super().start()

    @hook
    def send(self, message):
        while b"{spin}" in message.payload:
            pass
        return super().send(message)
"""


def write_guard(parent: Path, version: str, *, crashing: bool = False) -> Path:
    """Write a version of the guard into a folder of `parent`; return the folder."""
    source = builtin_folder(MODERATION)
    if source is None:
        raise BenchError("the moderation plugin is not part of this installation")
    folder = parent / f"guard-{version}"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "main.py").rename(folder / "moderation_main.py")
    (folder / "main.py").write_text(_CODE.format(crashing=crashing, spin=SPIN), encoding="utf-8")
    manifest = folder / "plugin.toml"
    text = manifest.read_text(encoding="utf-8")
    changed = text.replace('version = "1.0.0"', f'version = "{version}"', 1)
    if changed == text and version != "1.0.0":
        raise BenchError("the moderation plugin's manifest has no version 1.0.0 to replace")
    manifest.write_text(changed, encoding="utf-8")
    return folder
