"""What boot is told to do to itself inside the sandbox."""

from __future__ import annotations

import base64
import platform
import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from wkhost.plugin_host.boot import CONTROL_FD
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.landlock import landlock_rules
from wkhost.plugin_host.sandbox.seccomp import build_filter
from wkhost.plugin_host.sandbox.view import DATA, PLUGIN, View

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": str(DATA),
    "TMPDIR": "/tmp",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "WKHOST_CONTROL_FD": str(CONTROL_FD),
}
_MIB = 1024 * 1024
_WRITABLE = (str(DATA), "/tmp", "/dev/shm")
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
_FREE_ADDRESSES = {"x86_64": (1 << 44, 5 << 44), "aarch64": (1 << 36, 3 << 36)}
"""Where nothing lies in a fresh process: below heap, libraries and stack."""


def boot_orders(
    run: Mapping[str, Any],
    limits: Limits,
    view: View,
    *,
    subprocesses: bool,
    landlock_abi: int,
    internet: bool = False,
) -> dict[str, Any]:
    """Return boot's specification for a process with pid 2 in the view. `run`: see boot."""
    program = "command" in run
    exec_at = _addresses() if program and not subprocesses else None
    code = (
        _constant_filter(subprocesses, internet)
        if exec_at is None
        else build_filter(subprocesses=False, internet=internet, exec_at=exec_at)
    )
    orders: dict[str, Any] = {
        **run,
        "parent": 1,
        "folder": str(PLUGIN),
        "limits": {
            "RLIMIT_DATA": limits.memory_mb * _MIB,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_FSIZE": limits.file_mb * _MIB,
            "RLIMIT_NPROC": limits.processes,
            "RLIMIT_MEMLOCK": 65536,
            "RLIMIT_CORE": 0,
        },
        "landlock": landlock_rules(
            landlock_abi,
            writable=_WRITABLE,
            devices=_DEVICES,
            executable=view.executable if program or subprocesses else (),
            internet=internet,
        ),
        "filter": base64.b64encode(code).decode(),
    }
    if exec_at is not None:
        orders["exec_at"] = exec_at
    return orders


@lru_cache
def _constant_filter(subprocesses: bool, internet: bool) -> bytes:
    return build_filter(subprocesses=subprocesses, internet=internet)


def _addresses() -> tuple[int, int, int]:
    low, high = _FREE_ADDRESSES[platform.machine()]
    first, second, third = (low + 8 * secrets.randbelow((high - low) // 8) for _ in range(3))
    return first, second, third
