"""What the host itself reads about a plugin's process before it hands over the token.

The process's own word is no proof; /proc and the kernel's credentials are.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.boot import PR_SET_DUMPABLE

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts")
_SECCOMP_FILTER = "2"


class Expected(msgspec.Struct, frozen=True):
    """`uid` is the process's uid as the host sees it. The other two: whether boot was to do it."""

    uid: int
    filtered: bool = True
    namespaces: tuple[str, ...] = NAMESPACES


def check_process(pid: int, expected: Expected) -> None:
    """Raises PluginError, naming the first thing that is not as planned."""
    facts = _status(pid)
    wanted = {
        "NoNewPrivs": "1",
        "Seccomp": _SECCOMP_FILTER if expected.filtered else "0",
        "Uid": "\t".join([str(expected.uid)] * 4),
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16),
    }
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise PluginError(
                f"the sandbox does not hold: {name} of process {pid}: expected {value}, "
                f"found {facts.get(name)}"
            )
    for name in expected.namespaces:
        if _namespace(pid, name) == _namespace(os.getpid(), name):
            raise PluginError(
                f"the sandbox does not hold: process {pid} is in the server's {name} namespace"
            )


def forbid_dumps() -> None:
    """Let no core of this process be written and nobody of the same user look into it.

    A size limit for core files is not enough: where the kernel hands them to a program, it does not
    ask for it.
    """
    if platform.system() != "Linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise PluginError(f"process {pid}: cannot be looked at ({error.strerror})") from error
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _namespace(pid: int, name: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/{name}").st_ino
    except OSError as error:
        raise PluginError(
            f"process {pid}: its {name} namespace cannot be looked at ({error.strerror})"
        ) from error
