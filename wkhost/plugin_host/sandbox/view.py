"""What a plugin's process sees of the file system: fixed places, everything else is not there.

No place lies below a tree whose content comes from a plugin: bubblewrap before 0.12 follows a
symlink planted there when it makes a mount point. So the plugin's code and its data are mounted
whole, at top-level places, the data last.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

import msgspec

from wkhost.errors import PluginError

PLUGIN, DATA, SOCKETS, OURS = Path("/plugin"), Path("/data"), Path("/run/wk"), Path("/wkhost")
BOOT = OURS / "boot.py"
_SYSTEM = ("/usr",)
_ALIASES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FILES = ("/etc/ld.so.cache", "/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/localtime")


class Mount(msgspec.Struct, frozen=True):
    """`source` of the host appears at `target`."""

    source: Path
    target: Path
    writable: bool = False


class View(msgspec.Struct, frozen=True):
    """The mounts in their order, and the symlinks (target, place) at the root."""

    mounts: tuple[Mount, ...]
    links: tuple[tuple[str, Path], ...]
    executable: tuple[str, ...]
    """Folders with programs, as seen inside."""

    def parents(self) -> list[Path]:
        """Return the folders that have to be there first, outermost first."""
        places = [*(mount.target for mount in self.mounts), *(place for _, place in self.links)]
        found = {parent for place in places for parent in place.parents}
        return sorted(found - {Path("/")}, key=lambda path: (len(path.parts), path))


class Interpreter(msgspec.Struct, frozen=True):
    """The server's Python as plugins get it. `site` are the folders of installed packages."""

    executable: Path
    trees: tuple[Path, ...]
    links: tuple[tuple[str, Path], ...]
    """Symlinks (target, place) on the way from `executable` to the real file."""
    site: tuple[Path, ...]
    sdk: Path


def interpreter() -> Interpreter:
    """Look at the running interpreter. Raises PluginError without plugin_sdk."""
    sdk = importlib.util.find_spec("plugin_sdk")
    if sdk is None or sdk.origin is None:
        raise PluginError("plugin_sdk: not installed beside wkhost")
    paths = sysconfig.get_paths()
    site = tuple(dict.fromkeys(Path(paths[name]) for name in ("purelib", "platlib")))
    executable = Path(sys.executable)
    links, file = _follow(executable)
    base = Path(sys.base_prefix)
    trees = [*site, base / "lib", base / "lib64", Path(paths["stdlib"]), Path(paths["platstdlib"])]
    trees += [file, file.resolve(), Path(sys.prefix) / "pyvenv.cfg"]
    return Interpreter(
        executable=executable,
        trees=_outermost([path for path in trees if path.exists()]),
        links=tuple(links),
        site=site,
        sdk=Path(sdk.origin).parent,
    )


def plugin_view(
    python: Interpreter,
    boot: Path,
    *,
    plugin_dir: Path,
    data_dir: Path,
    socket_dir: Path | None,
    private: tuple[Path, ...],
) -> View:
    """Return the view of one plugin.

    Raises PluginError when a folder that must be shown holds one of `private`.
    """
    aliases = [(os.readlink(path), Path(path)) for path in _ALIASES if os.path.islink(path)]
    system = [path for path in _SYSTEM if os.path.isdir(path)]
    system += [path for path in _ALIASES if os.path.isdir(path) and not os.path.islink(path)]
    shown = _outermost([*map(Path, system), *python.trees, python.sdk])
    for tree in shown:
        for secret in private:
            if secret.resolve().is_relative_to(tree.resolve()):
                raise PluginError(f"{secret} lies in {tree}, which plugins read: move it elsewhere")
    mounts = [Mount(path, path) for path in shown]
    mounts += [Mount(Path(path), Path(path)) for path in _FILES if os.path.exists(path)]
    mounts.append(Mount(boot, BOOT))
    if socket_dir is not None:
        mounts.append(Mount(socket_dir, SOCKETS))
    mounts += [Mount(plugin_dir, PLUGIN), Mount(data_dir, DATA, writable=True)]
    links = [link for link in (*aliases, *python.links) if not _inside(link[1], shown)]
    programs = (*system, *map(str, python.trees), str(PLUGIN))
    return View(tuple(mounts), tuple(links), programs)


def _inside(path: Path, trees: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(tree) for tree in trees)


def _follow(path: Path) -> tuple[list[tuple[str, Path]], Path]:
    """Return the symlinks from `path` on, and the first thing that is none."""
    links: list[tuple[str, Path]] = []
    while path.is_symlink():
        target = os.readlink(path)
        links.append((target, path))
        path = Path(os.path.normpath(path.parent / target))
    return links, path


def _outermost(paths: list[Path]) -> tuple[Path, ...]:
    """Drop what lies in another one, in the given order."""
    unique = list(dict.fromkeys(paths))
    return tuple(
        path
        for path in unique
        if not any(path != other and path.is_relative_to(other) for other in unique)
    )
