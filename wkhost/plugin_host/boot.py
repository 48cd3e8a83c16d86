"""The first code of every plugin process: limits itself, then becomes the plugin.

A script of the host's, started as `python -I -S boot.py SPEC`; it imports nothing of wkhost and
runs before `site`, so that no `.pth` of an environment runs before the limits hold. SPEC is a JSON
object, or `@N`: then descriptor N is a socket on which the host sends that object as one line,
boot answers `ready` when every layer holds, and waits for `go`, which the host sends once it has
seen with its own eyes that they do. Meanwhile it imports what every Python plugin needs of the
standard library. The plugin's control line follows on the same descriptor.

The object: `parent` (pid of the parent, as seen here), `control_fd`, `limits` ({RLIMIT name:
value}), `folder` (to start in), and one of `module` with `path` (where it is found if it is not
installed), `script` and `command`; `args` for the first two. Optional: `nice`, `landlock` (see
`sandbox/landlock.py`), `filter` (a BPF program in base64), `exec_at` (three addresses, see
`sandbox/seccomp.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CONTROL_FD = 3
GO, READY = b"go\n", b"ready\n"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
LANDLOCK_PATH_BENEATH = 1
LANDLOCK_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""Rights that a rule on a single file may have."""
MAP_FIXED_NOREPLACE = 0x100000
MAP_PRIVATE_ANONYMOUS, PROT_READ_WRITE, PAGE = 0x22, 3, 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p


def main() -> None:
    spec, asked_for = read_spec(sys.argv[1])
    die_with_parent(spec["parent"])
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    keep_only_control(spec["control_fd"])
    for name, value in spec["limits"].items():
        limit(getattr(resource, name), value)
    os.umask(0o077)
    os.chdir(spec["folder"])
    os.environ.pop("PWD", None)  # bubblewrap's, and now wrong
    reset_signals()
    if spec.get("nice"):
        os.nice(spec["nice"])
    prctl(PR_SET_DUMPABLE, 0)
    ready_to_exec = place_arguments(spec) if "exec_at" in spec else None
    if spec.get("landlock"):
        restrict_files(spec["landlock"])
    if spec.get("filter"):
        restrict_calls(spec["filter"])
    if asked_for:
        ask_host(warm_up="module" in spec)
    if ready_to_exec is not None:
        exec_placed(ready_to_exec)
    if "command" in spec:
        become(spec["command"], spec["folder"])
    import site

    site.main()
    run_python(spec)


# --- talking to the host ------------------------------------------------------------------------


def read_spec(argument: str) -> tuple[dict[str, Any], bool]:
    """Return the object, and whether it came from the host's socket."""
    if not argument.startswith("@"):
        return json.loads(argument), False
    descriptor = int(argument[1:])
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(descriptor, 65536)
        if not data:
            sys.exit("boot: the host is gone")
        line += data
    spec: dict[str, Any] = json.loads(line)
    spec["control_fd"] = descriptor
    return spec, True


def ask_host(*, warm_up: bool) -> None:
    os.write(CONTROL_FD, READY)
    if warm_up:
        import asyncio  # noqa: F401 - the slowest part of the SDK that is not a package
    answer = b""
    while len(answer) < len(GO):
        data = os.read(CONTROL_FD, len(GO) - len(answer))
        if not data:
            sys.exit("boot: the host did not let it go on")
        answer += data
    if answer != GO:
        sys.exit("boot: expected the host to say go")


# --- limits -------------------------------------------------------------------------------------


def prctl(option: int, value: int, more: Any = 0) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), more, 0, 0) != 0:
        fail(f"prctl({option})")


def fail(what: str) -> NoReturn:
    error = ctypes.get_errno()
    raise OSError(error, f"{what}: {os.strerror(error)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with its parent, and end now if that is gone already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("boot: the host is gone")


def keep_only_control(descriptor: int) -> None:
    """Move the control descriptor to 3 and close everything above it."""
    if descriptor >= 0:
        os.dup2(descriptor, CONTROL_FD, inheritable=True)
    os.closerange(CONTROL_FD + (descriptor >= 0), resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def reset_signals() -> None:
    """What the host ignores or blocks is the host's business."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def restrict_files(landlock: dict[str, Any]) -> None:
    words = (landlock["files"], landlock["network"], landlock["scope"])
    rules = (ctypes.c_uint64 * 3)(*words)
    size = ctypes.c_size_t(landlock["size"])
    ruleset = libc.syscall(ctypes.c_long(LANDLOCK_CREATE), rules, size, 0)
    if ruleset < 0:
        fail("landlock_create_ruleset")
    for path, access in landlock["rules"]:
        add_rule(ruleset, path, access)
    if libc.syscall(ctypes.c_long(LANDLOCK_RESTRICT), ctypes.c_int(ruleset), 0) != 0:
        fail("landlock_restrict_self")
    os.close(ruleset)


def add_rule(ruleset: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing to allow
    if not os.path.isdir(path):
        access &= LANDLOCK_OF_FILES
    rule = access.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
    add = ctypes.c_long(LANDLOCK_ADD)
    if libc.syscall(add, ctypes.c_int(ruleset), LANDLOCK_PATH_BENEATH, rule, 0) != 0:
        fail(f"landlock_add_rule({path})")
    os.close(descriptor)


class SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict_calls(filter_base64: str) -> None:
    import binascii

    code = binascii.a2b_base64(filter_base64)
    program = SockFprog(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


# --- becoming the plugin ------------------------------------------------------------------------


def find_program(command: list[str], folder: str) -> str:
    """Return the path of a program, which is looked for in the folder first."""
    program = command[0]
    inside = os.path.join(folder, program)
    if "/" in program or os.path.isfile(inside):
        return inside
    for path in os.get_exec_path():
        if os.access(os.path.join(path, program), os.X_OK):
            return os.path.join(path, program)
    sys.exit(f"boot: {program}: not found in the plugin's folder nor in PATH")


def become(command: list[str], folder: str) -> NoReturn:
    os.execv(find_program(command, folder), command)


def place_arguments(spec: dict[str, Any]) -> tuple[int, int, int]:
    """Put the arguments of the one allowed execve where the filter expects them."""
    path = ctypes.create_string_buffer(os.fsencode(find_program(spec["command"], spec["folder"])))
    words = [os.fsencode(word) for word in spec["command"]]
    variables = [os.fsencode(f"{name}={value}") for name, value in os.environ.items()]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    envp = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
    PLACED.extend((words, variables))
    at = spec["exec_at"]
    place(at[0], bytes(path))
    place(at[1], bytes(argv))
    place(at[2], bytes(envp))
    return at[0], at[1], at[2]


PLACED: list[Any] = []
"""Keeps the words alive that the placed arrays point to."""


def place(address: int, data: bytes) -> None:
    start = address & -PAGE
    length = (address - start + len(data) + PAGE - 1) & -PAGE
    flags = MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE
    found = libc.mmap(
        ctypes.c_void_p(start),
        ctypes.c_size_t(length),
        PROT_READ_WRITE,
        flags,
        -1,
        ctypes.c_long(0),
    )
    if found != start:
        fail("mmap of the arguments")
    ctypes.memmove(address, data, len(data))


def exec_placed(at: tuple[int, int, int]) -> NoReturn:
    path, argv, envp = (ctypes.c_void_p(address) for address in at)
    libc.execve(path, argv, envp)
    fail("execve")


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
