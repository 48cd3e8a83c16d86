"""Whether a process of another uid gets to a path by itself, or root has to bring it there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

_READ, _SEARCH = 4, 1


def out_of_reach(paths: Iterable[Path], uid: int) -> Path | None:
    """Return the first thing on the way to one of `paths` that is closed to `uid`, or a path itself
    that it may not read; None when it gets to all.

    The process has the group `uid` and no others. Symlinks are followed, all folders on the way
    looked at. Raises OSError where something is not there.
    """
    seen: dict[Path, bool] = {}
    for path in paths:
        real = path.resolve(strict=True)
        for folder in (*path.parents, *real.parents):
            if folder not in seen:
                seen[folder] = _may(folder, uid, _SEARCH)
            if not seen[folder]:
                return folder
        if not _may(real, uid, _READ | (_SEARCH if real.is_dir() else 0)):
            return real
    return None


def _may(path: Path, uid: int, wanted: int) -> bool:
    status = os.stat(path)
    if status.st_uid == uid:
        shift = 6
    elif status.st_gid == uid:
        shift = 3
    else:
        shift = 0
    return stat.S_IMODE(status.st_mode) >> shift & wanted == wanted
