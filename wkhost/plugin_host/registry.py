"""Which plugins are installed and enabled, kept in <data>/plugins/registry.json.

Usable with and without a running server: every change reads, changes and replaces the file under a
lock on <data>/plugins/registry.lock, and is durable when the call returns.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.link.contract import ConfigVersion

REGISTRY_FORMAT = 1


class Release(msgspec.Struct, frozen=True):
    """One version that is installed. `folder` is relative to the plugins directory.

    `granted` are names of capabilities that the operator agreed to for exactly this digest; None
    while nobody has. `withdrawn` says why it was taken back, where it was.
    """

    version: str
    digest: str
    folder: str
    source: str
    granted: tuple[str, ...] | None = None
    installed_at: float = 0.0
    withdrawn: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """What a plugin had when another version took over: its values (a space of the key-value
    store), its settings and where its observers were. `cursors` is by hook."""

    name: str
    version: str
    digest: str
    taken_at: float
    why: str
    space: int
    config: dict[str, Any]
    config_number: int
    cursors: dict[str, int]


class Quarantine(msgspec.Struct, frozen=True):
    """Why a plugin is not started any more, and the last lines that it printed."""

    reason: str
    at: float
    lines: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """One installed plugin. `folder` is relative to the plugins directory."""

    no: str
    version: str
    digest: str
    folder: str
    source: str
    enabled: bool = False
    config: dict[str, Any] = {}
    config_number: int = 1
    generation: int = 0
    """Number of the last process ever started."""
    history: tuple[ConfigVersion, ...] = ()
    """Configurations, oldest first; empty until the first change."""
    granted: tuple[str, ...] | None = None
    """Capabilities that the operator agreed to for `digest`; None while nobody has."""
    denied: tuple[str, ...] = ()
    """Capabilities that were revoked: they win over grants, for every version."""
    manifest: str = ""
    """The manifest as installed: it keeps the plugin's place where its files are damaged."""
    releases: tuple[Release, ...] = ()
    """Installed versions, oldest first."""
    snapshots: tuple[Snapshot, ...] = ()
    """Oldest first."""
    space: int = 0
    """Which space of the key-value store the plugin works in."""
    last_space: int = 0
    """Number of the last space ever made."""
    copy_from: int | None = None
    """The space whose values are still to be copied into `space`, before the plugin runs."""
    quarantine: Quarantine | None = None


class _File(msgspec.Struct, frozen=True):
    format: int
    plugins: dict[str, Entry]


class Registry:
    """The entries by plugin number. Each method blocks for at most a few milliseconds."""

    def __init__(self, plugins_dir: Path) -> None:
        self.plugins_dir = plugins_dir
        self._path = plugins_dir / "registry.json"

    def entries(self) -> dict[str, Entry]:
        """Return all entries. Raises PluginError when the file is damaged or from a newer one."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            file = msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError as error:
            raise PluginError(f"{self._path}: damaged ({error})") from error
        if file.format != REGISTRY_FORMAT:
            raise PluginError(
                f"{self._path}: expected format {REGISTRY_FORMAT}, got {file.format} "
                "(written by another version of wkhost)"
            )
        return file.plugins

    def get(self, no: str) -> Entry:
        """Raises PluginError when `no` is not installed."""
        entry = self.entries().get(no)
        if entry is None:
            raise PluginError(f"{no}: not installed")
        return entry

    def folder(self, entry: Entry) -> Path:
        return self.plugins_dir / entry.folder

    def put(self, entry: Entry) -> None:
        with self._changing() as entries:
            entries[entry.no] = entry

    def change(self, no: str, **fields: Any) -> Entry:
        """Replace `fields` of an entry and return it. Raises PluginError when not installed."""
        return self.update(no, lambda entry: msgspec.structs.replace(entry, **fields))

    def update(self, no: str, change: Callable[[Entry], Entry]) -> Entry:
        """Replace an entry by what `change` makes of it. Raises PluginError when not installed."""
        with self._changing() as entries:
            if no not in entries:
                raise PluginError(f"{no}: not installed")
            entries[no] = change(entries[no])
            return entries[no]

    def remove(self, no: str) -> Entry:
        """Raises PluginError when not installed."""
        with self._changing() as entries:
            entry = entries.pop(no, None)
            if entry is None:
                raise PluginError(f"{no}: not installed")
            return entry

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        self.plugins_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.plugins_dir / "registry.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self.entries()
            yield entries
            self._replace(entries)
        finally:
            os.close(lock)

    def _replace(self, entries: dict[str, Entry]) -> None:
        data = msgspec.json.encode(_File(REGISTRY_FORMAT, entries))
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(data, indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        folder = os.open(self.plugins_dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
