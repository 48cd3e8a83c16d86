"""The first code of every plugin process: limits itself, then becomes the plugin.

A script of the host's, started as `python -I -S boot.py SPEC`; it imports nothing of wkhost and
runs before `site`, so that no `.pth` of an environment runs before the limits hold. SPEC is a JSON
object: `parent` (pid of the host), `control_fd`, `limits` ({RLIMIT name: value}), `folder` (to
start in), and one of `module` with `path` (where it is found if it is not installed), `script`
and `command`; `args` for the first two.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

CONTROL_FD = 3
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    die_with_parent(spec["parent"])
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    keep_only_control(spec["control_fd"])
    for name, value in spec["limits"].items():
        limit(getattr(resource, name), value)
    os.umask(0o077)
    os.chdir(spec["folder"])
    if "command" in spec:
        become(spec["command"], spec["folder"])
    import site

    site.main()
    run_python(spec)


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with the host, and end now if the host is gone already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("boot: the host is gone")


def keep_only_control(descriptor: int) -> None:
    """Move the control pipe to descriptor 3 and close everything above it."""
    if descriptor >= 0:
        os.dup2(descriptor, CONTROL_FD, inheritable=True)
    os.closerange(CONTROL_FD + (descriptor >= 0), resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def become(command: list[str], folder: str) -> NoReturn:
    program = command[0]
    inside = os.path.join(folder, program)
    if "/" in program or os.path.isfile(inside):
        os.execv(inside, command)
    os.execvp(program, command)


def run_python(spec: dict[str, Any]) -> None:
    import runpy

    # A plugin's lines are wanted when they are printed, not when a buffer is full.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if "script" in spec:
        sys.argv = [spec["script"], *spec["args"]]
        runpy.run_path(spec["script"], run_name="__main__")
        return
    import importlib.util

    if importlib.util.find_spec(spec["module"]) is None:
        sys.path.append(spec["path"])
    sys.argv = [spec["module"], *spec["args"]]
    runpy.run_module(spec["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
