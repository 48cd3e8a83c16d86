"""Compiled code that every plugin loads at its start: made by the host, readable by every uid.

A plugin cannot write it, since its packages are mounted read-only, and a plugin with a uid of its
own cannot read what another process wrote for itself alone (boot's umask lets nobody else read).
Either costs a tenth of a start, at every start.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("plugin_sdk", "hpack", "google.protobuf")
"""What the SDK imports besides the standard library; installers need not compile it."""
_READ, _SEARCH = 0o444, 0o111
_LEVELS = 10


def make_readable_bytecode(site: Iterable[Path]) -> None:
    """Compile what is missing or old, and let whoever may read a source read its byte code.

    `site` are the folders of installed packages; of them the modules that are in no package are
    looked at as well. Blocks: for milliseconds, or seconds if nothing was compiled. Folders that
    the server may not write to stay as they are: plugins start slower then, and that is all.
    """
    for folder in site:
        _compile(folder, levels=0)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for place in () if spec is None else spec.submodule_search_locations or ():
            _compile(Path(place), levels=_LEVELS)


def _compile(folder: Path, levels: int) -> None:
    if not os.access(folder, os.W_OK):
        return
    compileall.compile_dir(folder, maxlevels=levels, quiet=2, workers=1)
    for source in folder.rglob("*.py") if levels else folder.glob("*.py"):
        compiled = Path(importlib.util.cache_from_source(str(source)))
        _open_like(compiled.parent, source.parent, _READ | _SEARCH)
        _open_like(compiled, source, _READ)


def _open_like(path: Path, other: Path, bits: int) -> None:
    """Give `path` those of `bits` that `other` has."""
    try:
        mode = path.stat().st_mode & 0o777
        wanted = other.stat().st_mode & bits
        if wanted & ~mode:
            path.chmod(mode | wanted)
    except OSError:
        return  # it could not be compiled, or is being replaced
