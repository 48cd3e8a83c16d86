"""Where a server's sockets live: a short private directory, found again through the data directory.

A Unix socket's path may have 107 bytes, so sockets cannot live below an arbitrary data directory.
The server makes one directory per data directory and writes its path into the file `runtime` there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from wkhost.errors import ConfigError
from wkhost.link.errors import NoServerError

LINK_SOCKET = "link.sock"
"""Name of the link's socket in the runtime directory."""
MAX_SOCKET_PATH_BYTES = 107
_POINTER = "runtime"
_ROOM_FOR_SOCKET_NAMES = 32


def open_runtime_dir(data_dir: Path) -> Path:
    """Make the runtime directory of `data_dir` (mode 0700) and record it there; return its path.

    The same data directory gets the same directory again, so nothing piles up after crashes.

    Raises: ConfigError when the directory cannot be private or its path would be too long.
    """
    digest = sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    path = _base_dir() / f"wkhost-{os.geteuid()}-{digest}"
    if len(os.fsencode(path)) + _ROOM_FOR_SOCKET_NAMES > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"runtime directory {path}: the path is too long for sockets in it")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runtime directory {path}: cannot be made: {error}") from error
    check_private(path)
    pointer = data_dir / _POINTER
    fresh = data_dir / f".{_POINTER}.{os.getpid()}"
    fresh.write_text(f"{path}\n", encoding="utf-8")
    fresh.replace(pointer)
    return path


@contextmanager
def runtime_directory(data_dir: Path) -> Iterator[Path]:
    """`open_runtime_dir`, and its removal at the end if nobody has left anything in it."""
    path = open_runtime_dir(data_dir)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()


def find_link_socket(data_dir: Path) -> Path:
    """Return the path of the link's socket for `data_dir`, which need not answer.

    Raises: NoServerError when no server ever ran on this data directory.
    """
    try:
        text = (data_dir / _POINTER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise no_server(data_dir) from None
    return Path(text.strip()) / LINK_SOCKET


def no_server(data_dir: Path) -> NoServerError:
    return NoServerError(
        f"no server is running for the data directory {data_dir}; start one with `wkhost run`"
    )


def check_private(path: Path) -> None:
    """Raises: ConfigError unless `path` is a real directory, ours, and closed to everyone else."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"runtime directory {path}: expected a directory")
    if status.st_uid != os.geteuid():
        raise ConfigError(f"runtime directory {path}: belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"runtime directory {path}: expected mode 0700")


def _base_dir() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and Path(base).is_dir() and os.access(base, os.W_OK):
        return Path(base)
    return Path(tempfile.gettempdir())
