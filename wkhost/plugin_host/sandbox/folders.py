"""Walking folders that a plugin may have filled, and may be changing: no symlink is followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wkhost.errors import PluginError

MAX_DEPTH = 100
"""Also the most descriptors that a walk has open."""


def walk(folder: Path) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """Yield (descriptor of its folder, entry) for everything below. Raises PluginError, OSError.

    What vanishes meanwhile is left out.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    stack = [_Level(os.open(folder, flags))]
    try:
        while stack:
            level = stack[-1]
            entry = next(level.entries, None)
            if entry is None:
                stack.pop().close()
                continue
            yield level.descriptor, entry
            if entry.is_dir(follow_symlinks=False):
                if len(stack) >= MAX_DEPTH:
                    raise PluginError(f"{folder}: nested deeper than {MAX_DEPTH} folders")
                try:
                    stack.append(_Level(os.open(entry.name, flags, dir_fd=level.descriptor)))
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue
    finally:
        for level in stack:
            level.close()


class _Level:
    """One open folder of the way down."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.entries = os.scandir(descriptor)

    def close(self) -> None:
        self.entries.close()
        os.close(self.descriptor)
