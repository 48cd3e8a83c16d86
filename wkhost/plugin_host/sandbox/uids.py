"""A uid of its own for every plugin, where the server is root.

Kept in <plugins>/uids.json. A uid is not given to another plugin while files of its first owner
exist, so that nobody inherits them.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.folders import walk

FIRST_UID, LAST_UID = 1_879_100_000, 1_879_165_535
"""Outside of what systemd, containers and /etc/subuid hand out."""


class UidTable:
    """The uids of one plugins directory. Methods block for at most a few milliseconds."""

    def __init__(self, plugins_dir: Path, first: int = FIRST_UID, last: int = LAST_UID) -> None:
        self._plugins_dir = plugins_dir
        self._path = plugins_dir / "uids.json"
        self._range = range(first, last + 1)

    def uid_of(self, no: str) -> int:
        """Return the uid of a plugin, given now if it has none. Raises PluginError."""
        found = self._read().get(no)
        if found is not None and found in self._range:
            return found
        return self._give(no)

    def _give(self, no: str) -> int:
        self._plugins_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._plugins_dir / "uids.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            table = {
                name: uid
                for name, uid in self._read().items()
                if name != no and (self._plugins_dir / name).exists()
            }
            taken = set(table.values())
            uid = next((uid for uid in self._range if uid not in taken), None)
            if uid is None:
                raise PluginError(f"{self._path}: all {len(self._range)} uids are taken")
            table[no] = uid
            fresh = self._path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(table)))
            fresh.replace(self._path)
            return uid
        finally:
            os.close(lock)

    def _read(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise PluginError(f"{self._path}: damaged ({error})") from error


def give_folder(folder: Path, uid: int) -> None:
    """Make a plugin's folder and all in it belong to `uid`. Raises PluginError, OSError."""
    if folder.lstat().st_uid == uid:
        return
    for descriptor, entry in walk(folder):
        os.chown(entry.name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
    # Last, so that a give that was cut off is done again.
    os.chown(folder, uid, uid, follow_symlinks=False)
