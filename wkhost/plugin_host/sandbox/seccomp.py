"""The system call filter: a classic BPF program, built here and installed by boot.

A deny list on purpose: an allow list breaks other people's wheels at each new libc. The default is
*single process*: threads may be made, processes may not, and no program may be executed. With
`subprocesses` both may. A program that is not Python has to be executed once by boot: that one
call is let through by the three addresses of its arguments, chosen at random, which the program
itself never learns.
"""

from __future__ import annotations

import errno
import platform
import struct

from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.syscalls import AUDIT_ARCH, LAST_KNOWN, TABLES

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGS = 0, 4, 16
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000
"""New mount, cgroup, uts, ipc, user, pid or net namespace."""
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_PR_SET_DUMPABLE = 4
_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD = 0x5412, 0x541C, 0x541D, 0x5423

DENIED = (
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("pidfd_getfd", "kcmp", "move_pages", "migrate_pages"),
    # namespaces and mounts
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount"),
    # the CPUs that the host chose
    "sched_setaffinity",
    # large, rarely needed parts of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "fanotify_init", "fanotify_mark"),
    *("name_to_handle_at", "open_by_handle_at", "lookup_dcookie", "nfsservctl"),
    *("mbind", "set_mempolicy", "set_mempolicy_home_node", "lsm_set_self_attr", "personality"),
    # shared things without a name in a file system
    *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
    # the machine
    *("init_module", "finit_module", "delete_module", "create_module", "kexec_load"),
    *("kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *("setdomainname", "syslog", "vhangup", "iopl", "ioperm", "modify_ldt", "uselib", "ustat"),
    *("sysfs", "_sysctl", "mknod", "mknodat", "memfd_secret"),
)
"""Refused with EPERM whatever the arguments."""
SINGLE_PROCESS = ("fork", "vfork", "execveat", "memfd_create")
"""Refused besides, where the manifest does not ask for subprocesses."""


def build_filter(
    *,
    subprocesses: bool,
    internet: bool = False,
    exec_at: tuple[int, int, int] | None = None,
    machine: str = "",
) -> bytes:
    """Return the program, 8 bytes an instruction, in the machine's own byte order.

    `exec_at` holds the addresses of path, argv and envp of the one `execve` that may happen.
    `internet` allows IPv4 and IPv6 sockets, which is safe in a network namespace only. Raises
    PluginError for a machine without a table.
    """
    machine = machine or platform.machine()
    if machine not in TABLES:
        raise PluginError(
            f"no system call table for {machine}: expected one of {', '.join(TABLES)}"
        )
    program = _Program(TABLES[machine])
    program.only_native(AUDIT_ARCH[machine], x32=machine == "x86_64")
    program.refuse("clone3", errno.ENOSYS)
    for name in DENIED if subprocesses else (*DENIED, *SINGLE_PROCESS):
        program.refuse(name, errno.EPERM)
    program.check_clone(subprocesses)
    if not subprocesses:
        program.check_execve(exec_at)
    families = (_AF_UNIX, _AF_INET, _AF_INET6) if internet else (_AF_UNIX,)
    for name in ("socket", "socketpair"):
        program.check_argument(name, 0, allowed=families, error=errno.EAFNOSUPPORT)
    terminal = (_TIOCSTI, _TIOCLINUX, _TIOCCONS, _TIOCSETD)
    program.check_argument("ioctl", 1, refused=terminal, error=errno.EPERM)
    program.check_argument("prctl", 0, refused=(_PR_SET_DUMPABLE,), error=errno.EPERM)
    program.check_argument("prlimit64", 0, allowed=(0,), error=errno.EPERM)
    program.add(_RETURN, _ALLOW)
    return bytes(program.code)


class _Program:
    """Instructions. Every check is a block that begins with the number loaded and ends so."""

    def __init__(self, numbers: dict[str, int]) -> None:
        self.code = bytearray()
        self._numbers = numbers

    def add(self, operation: int, value: int, yes: int = 0, no: int = 0) -> None:
        self.code += struct.pack("=HBBI", operation, yes, no, value)

    def only_native(self, arch: int, *, x32: bool) -> None:
        """Calls of another architecture or of x32 kill; calls from the future do not exist."""
        self.add(_LOAD, _ARCH)
        self.add(_JEQ, arch, yes=1)
        self.add(_RETURN, _KILL_PROCESS)
        self.add(_LOAD, _NR)
        if x32:
            self.add(_JGE, _X32, no=1)
            self.add(_RETURN, _KILL_PROCESS)
        self.add(_JGE, LAST_KNOWN + 1, no=1)
        self.add(_RETURN, _ERRNO | errno.ENOSYS)

    def refuse(self, name: str, error: int) -> None:
        if name in self._numbers:
            self.add(_JEQ, self._numbers[name], no=1)
            self.add(_RETURN, _ERRNO | error)

    def check_argument(
        self,
        name: str,
        index: int,
        *,
        allowed: tuple[int, ...] = (),
        refused: tuple[int, ...] = (),
        error: int,
    ) -> None:
        """Compare the low half of an argument, which is all that the kernel takes of these."""
        values = allowed or refused
        self.add(_JEQ, self._numbers[name], no=len(values) + 3)
        self.add(_LOAD, _ARGS + 8 * index)
        for position, value in enumerate(values):
            self.add(_JEQ, value, yes=len(values) - position)
        self.add(_RETURN, _ERRNO | error if allowed else _ALLOW)
        self.add(_RETURN, _ALLOW if allowed else _ERRNO | error)

    def check_clone(self, subprocesses: bool) -> None:
        self.add(_JEQ, self._numbers["clone"], no=4 if subprocesses else 5)
        self.add(_LOAD, _ARGS)
        self.add(_JSET, _CLONE_NEW, yes=1 if subprocesses else 2)
        if not subprocesses:
            self.add(_JSET, _CLONE_THREAD, no=1)
        self.add(_RETURN, _ALLOW)
        self.add(_RETURN, _ERRNO | errno.EPERM)

    def check_execve(self, exec_at: tuple[int, int, int] | None) -> None:
        number = self._numbers["execve"]
        if exec_at is None:
            self.refuse("execve", errno.EPERM)
            return
        self.add(_JEQ, number, no=14)
        for index, address in enumerate(exec_at):
            left = 4 * (2 - index)
            self.add(_LOAD, _ARGS + 8 * index)
            self.add(_JEQ, address & 0xFFFFFFFF, no=left + 3)
            self.add(_LOAD, _ARGS + 8 * index + 4)
            self.add(_JEQ, address >> 32, no=left + 1)
        self.add(_RETURN, _ALLOW)
        self.add(_RETURN, _ERRNO | errno.EPERM)
