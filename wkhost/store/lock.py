"""One process per data directory, and a sentence that says which."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wkhost.errors import DataDirectoryError, StoreError

LOCK_NAME = "LOCK"


class DirectoryLock:
    """An flock on `LOCK` in the directory, which holds the owner's pid for humans to read.

    The kernel drops the lock when its process ends, however it ends.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    def acquire(self) -> None:
        """Make the directory if needed and lock it.

        Raises DataDirectoryError if another process (or this one) has it, StoreError if it
        cannot be made or written.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise StoreError(f"cannot use the data directory {self._directory}: {e}") from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            who = f"process {owner}" if owner else "another process"
            raise DataDirectoryError(
                f"the data directory {self._directory} is in use by {who}; stop it first or "
                "choose another rootDir"
            ) from e
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as e:
            os.close(fd)
            raise StoreError(f"cannot write {self._directory / LOCK_NAME}: {e}") from e
        self._fd = fd

    def release(self) -> None:
        """Let others have the directory; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
