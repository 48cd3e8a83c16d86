"""Plugin packages: from a source to <data>/plugins/<no>/<version>-<digest>, whole or not at all.

No code of the package runs here except the import check of Python plugins, which runs in a child
with the plugin's own limits (see `process`).
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.extract import stage_package
from wkhost.plugin_host.manifest import MANIFEST_NAME, NO_PATTERN, Manifest, read_manifest

DIGEST_HEX = 12
"""Hex digits of the digest that name a version's folder."""
_STAGING = ".staging-"


class Package(msgspec.Struct, frozen=True):
    """One version. `digest` is the SHA-256 (hex) over its files as staged.

    Where it is to run, `manifest` holds no more than was granted, and `space` says which space of
    the key-value store it works in.
    """

    manifest: Manifest
    folder: Path
    digest: str
    source: str
    space: int = 0


def resolve_source(source: str) -> Path:
    """Return the path of `source`: a path that is there, or the name of a built-in plugin.

    A name without a slash is a built-in first. Raises PluginError.
    """
    builtin = builtin_folder(source)
    if builtin is not None:
        return builtin
    path = Path(source).expanduser()
    if not path.exists():
        known = ", ".join(builtin_names()) or "none"
        raise PluginError(
            f"{source}: expected a folder, a .tar.gz, a .zip, or a built-in plugin ({known})"
        )
    return path.absolute()


def builtin_folder(name: str) -> Path | None:
    """Return the folder of the built-in plugin `name`, or None."""
    if NO_PATTERN.fullmatch(name) is None:
        return None
    for root in _builtin_roots():
        if (root / name / MANIFEST_NAME).is_file():
            return root / name
    return None


def builtin_names() -> list[str]:
    found = {
        path.parent.name for root in _builtin_roots() for path in root.glob(f"*/{MANIFEST_NAME}")
    }
    return sorted(found)


def _builtin_roots() -> Iterator[Path]:
    """The folders of the installed `plugins` package. It is never imported."""
    spec = importlib.util.find_spec("plugins")
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        yield Path(location)


def install_package(source: str, plugins_dir: Path, check: Callable[[Package], None]) -> Package:
    """Stage `source`, check it, and move it to its place; an identical one there is kept.

    `check` gets the package in its staging folder before the move and raises PluginError to
    refuse. Blocks: call it in a thread. Raises PluginError; nothing is left behind then.
    """
    with _staged(source, plugins_dir) as package:
        staging, manifest, digest = package.folder, package.manifest, package.digest
        _compile(staging)
        check(package)
        folder = plugins_dir / manifest.no / f"{manifest.version}-{digest[:DIGEST_HEX]}"
        _move(staging, folder, digest)
        return msgspec.structs.replace(package, folder=folder)


def inspect_package(source: str, plugins_dir: Path) -> Package:
    """Return what `source` is, without installing it; its `folder` is gone. As `install_package`
    otherwise."""
    with _staged(source, plugins_dir) as package:
        return package


@contextmanager
def _staged(source: str, plugins_dir: Path) -> Iterator[Package]:
    path = resolve_source(source)
    if plugins_dir.resolve().is_relative_to(path.resolve()):
        raise PluginError(
            f"{path}: the server's plugins would be kept inside the plugin, in {plugins_dir}; run "
            "this where the server runs, or name its configuration with --config"
        )
    plugins_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=plugins_dir))
    try:
        stage_package(path, staging)
        manifest = read_manifest(staging)
        if manifest.main and not (staging / manifest.main).is_file():
            raise PluginError(f"run.main: {manifest.main!a} is not in the package")
        yield Package(manifest, staging, tree_digest(staging), source)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_stale_staging(plugins_dir: Path) -> None:
    """Remove what an install that was killed has left behind."""
    for path in plugins_dir.glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def tree_digest(folder: Path) -> str:
    """Return the SHA-256 (hex) over names, modes and bytes of all files, byte code left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in path.parts[len(folder.parts) :] or not path.is_file():
            continue
        executable = "x" if path.stat().st_mode & 0o100 else "-"
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256")
        digest.update(f"{executable} {len(name.encode())} {name} ".encode())
        digest.update(inner.digest())
    return digest.hexdigest()


def _compile(folder: Path) -> None:
    # Checked by hash, not by time: the move and a restored backup change times.
    compileall.compile_dir(
        folder,
        quiet=2,
        force=True,
        workers=1,
        invalidation_mode=PycInvalidationMode.CHECKED_HASH,
        stripdir=str(folder),
    )


def _move(staging: Path, folder: Path, digest: str) -> None:
    if folder.exists():
        if tree_digest(folder) == digest:
            return
        # A damaged copy of the very same version: the good one replaces it.
        shutil.rmtree(folder)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    _sync_tree(staging)
    staging.chmod(0o755)
    staging.rename(folder)
    _sync(folder.parent)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
