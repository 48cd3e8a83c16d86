"""Landlock rules as numbers for boot: read everything the view holds, write to a few places.

Source: include/uapi/linux/landlock.h and Documentation/userspace-api/landlock.rst of Linux.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

_CREATE_RULESET = 444
"""The same number on every architecture."""
_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK = 1 << 6, 1 << 7, 1 << 8, 1 << 9
_MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = 1 << 10, 1 << 11, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_LAST_RIGHT = {1: _MAKE_SYM, 2: _REFER, 3: _TRUNCATE, 4: _TRUNCATE}
"""ABI -> the last right of files that it knows; later ABIs know them all."""
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3

_READ = _READ_FILE | _READ_DIR
_CHANGE = (
    _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
)


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 where there is none or it is switched off."""
    if platform.system() != "Linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), _VERSION)
    return max(0, version)


def landlock_rules(
    abi: int,
    *,
    writable: tuple[str, ...],
    devices: tuple[str, ...],
    executable: tuple[str, ...],
    internet: bool = False,
) -> dict[str, Any] | None:
    """Return what boot applies, paths as the process sees them; None without Landlock.

    Everything may be read. `writable` folders may be changed but nothing in them executed,
    `devices` written to, `executable` folders hold programs. Ports are no substitute for a network
    namespace (TCP fast open, MPTCP and UDP pass): with `internet` they are left alone.
    """
    if abi < 1:
        return None
    handled = (_LAST_RIGHT.get(abi, _IOCTL_DEV) << 1) - 1
    rules = [("/", _READ)]
    rules += [(path, _READ | _CHANGE) for path in writable]
    rules += [(path, _READ | _WRITE_FILE | _IOCTL_DEV) for path in devices]
    rules += [(path, _READ | _EXECUTE) for path in executable]
    return {
        "files": handled,
        "network": _BIND_AND_CONNECT_TCP if abi >= 4 and not internet else 0,
        "scope": _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0,
        "size": 24 if abi >= 6 else 16 if abi >= 4 else 8,
        "rules": [(path, access & handled) for path, access in rules],
    }
