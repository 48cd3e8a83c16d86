"""The attacks by name: what each tries, and which outcomes show that it was stopped.

An outcome is an error's name, "absent" (what it looked for is not there), "SIGSYS" and the like
(the process was killed), "no arrival" (the host was not reached) or "escaped". Whatever is neither
"escaped" nor listed here is a mistake of the test, never a success of the sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass

PATHS = {"ENOENT", "EACCES", "EPERM", "EROFS", "absent"}
FAMILY = {"EAFNOSUPPORT"}
NETWORK = FAMILY | {"ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL"}
"""Where the filter lets internet sockets pass, the network namespace holds nothing to reach."""
PROXY = NETWORK | {"HTTP 403", "HTTP 405"}
"""Where it has a way out, the proxy refuses in its own words."""
DENIED = {"EPERM", "EACCES"}
NO_PROCESS = {"ESRCH", "ENOENT", "EPERM", "EACCES", "absent"}
NO_SUCH = {"ENOENT", "EACCES", "ECONNREFUSED", "EPERM"}
FULL = {"ENOSPC", "EFBIG", "EDQUOT", "SIGKILL"}
MEMORY = {"MemoryError", "ENOMEM", "SIGKILL", "EPERM", "EFBIG", "absent"}
NO_FORK = {"EPERM", "EAGAIN"}


@dataclass(frozen=True, slots=True)
class Attack:
    """`alone`: it needs a process of its own: it may end it, change it or use up its limits."""

    title: str
    blocked: set[str]
    alone: bool = False


ATTACKS: dict[str, Attack] = {
    "F01": Attack("read /etc/shadow", PATHS),
    "F02": Attack("read a secret of the server", PATHS),
    "F03": Attack("read an ssh key in a home", PATHS),
    "F04": Attack("list the server's data directory", PATHS),
    "F05": Attack("stat a secret of the server", PATHS),
    "F06": Attack("write into the server's data directory", PATHS),
    "F07": Attack("write into a folder that is open to all", PATHS),
    "F08": Attack("change its own code", PATHS),
    "F09": Attack("change the times of a secret", PATHS),
    "F10": Attack("read another plugin's data", PATHS),
    "F11": Attack("read a secret through a symlink in its data", PATHS),
    "F12": Attack("hard-link a secret into its data", PATHS | {"EXDEV"}),
    "F13": Attack("read through /proc/HOST/root", NO_PROCESS),
    "F14": Attack("open the raw disk", PATHS),
    "F15": Attack("write /proc/sys/kernel/core_pattern", PATHS),
    "F16": Attack("write a control group of the host", PATHS),
    "F17": Attack("make a block device", PATHS),
    "F18": Attack("read the host's /dev/shm", PATHS),
    "F20": Attack("plant code among the installed packages", PATHS),
    "N01": Attack("TCP to loopback", NETWORK),
    "N02": Attack("TCP to the machine's own address", NETWORK),
    "N03": Attack("TCP to IPv6 loopback", NETWORK),
    "N04": Attack("listen where the host can connect", FAMILY | {"no arrival"}),
    "N05": Attack("UDP to loopback", FAMILY | {"no arrival"}),
    "N06": Attack("UDP to the outside", NETWORK),
    "N07": Attack("TCP fast open", NETWORK),
    "N08": Attack("MPTCP", NETWORK),
    "N09": Attack("packet socket", FAMILY | {"EPERM"}),
    "N10": Attack("see interfaces by netlink", FAMILY),
    "N11": Attack("vsock", FAMILY),
    "N12": Attack("kernel crypto by AF_ALG", FAMILY),
    "N13": Attack("reach a host that is not in its egress list", PROXY),
    "N14": Attack("reach another port of a listed host", PROXY),
    "N15": Attack("reach loopback by another spelling", PROXY),
    "N16": Attack("reach a host by plain http through the proxy", PROXY),
    "U01": Attack("connect to another plugin's socket", NO_SUCH),
    "U02": Attack("connect to an abstract socket", NO_SUCH),
    "U03": Attack("send to a datagram socket", NO_SUCH),
    "U04": Attack("attach SysV shared memory", DENIED | {"EINVAL"}),
    "U05": Attack("dial the admin link", NO_SUCH),
    "U06": Attack("put a socket beside the server's", PATHS),
    "P01": Attack("signal the host", NO_PROCESS),
    "P02": Attack("signal another plugin", NO_PROCESS),
    "P03": Attack("ptrace another plugin", NO_PROCESS),
    "P04": Attack("read another plugin's environment", NO_PROCESS),
    "P05": Attack("read another plugin's memory", NO_PROCESS),
    "P06": Attack("read its memory by process_vm_readv", NO_PROCESS),
    "P07": Attack("take a descriptor of the host", NO_PROCESS),
    "P08": Attack("see the host's processes", NO_PROCESS),
    "P09": Attack("change the host's limits", NO_PROCESS),
    "P10": Attack("enter the host's namespaces", NO_PROCESS, alone=True),
    "P11": Attack("survive as a daemon", NO_FORK | {"reaped"}, alone=True),
    "R01": Attack("fork bomb", NO_FORK, alone=True),
    "R02": Attack("1 GiB of memory in one process", MEMORY, alone=True),
    "R03": Attack("1.2 GiB of memory in many processes", MEMORY | NO_FORK, alone=True),
    "R04": Attack("memory that belongs to no process", MEMORY, alone=True),
    "R05": Attack("1,000 descriptors", {"EMFILE"}),
    "R06": Attack("CPU beyond its share", {"absent"}, alone=True),
    "R07": Attack("fill the disk with one file", FULL, alone=True),
    "R08": Attack("fill the disk with many files", FULL, alone=True),
    "R09": Attack("use up inodes", FULL, alone=True),
    "R10": Attack("dump core", DENIED | {"absent"}),
    "R11": Attack("raise its own priority", DENIED),
    "R12": Attack("lock 64 MiB of memory", {"EPERM", "ENOMEM", "EAGAIN"}),
    "R13": Attack("1 GiB of shared anonymous memory", MEMORY, alone=True),
    "K01": Attack("become root by a setuid program", PATHS | NO_FORK),
    "K02": Attack("execute /bin/su", PATHS | NO_FORK),
    "K03": Attack("have capabilities or become root", DENIED | {"EINVAL"}),
    "K04": Attack("mount a file system", DENIED),
    "K05": Attack("make a user namespace", DENIED | {"ENOSPC"}, alone=True),
    "K06": Attack("make a user namespace by clone3", DENIED | {"ENOSYS", "ENOSPC"}),
    "K07": Attack("add a key", DENIED),
    "K08": Attack("bpf", DENIED),
    "K09": Attack("perf events", DENIED),
    "K10": Attack("userfaultfd", DENIED),
    "K11": Attack("io_uring", DENIED),
    "K12": Attack("type into the terminal", {"ENXIO", "ENOENT", "EPERM", "EACCES", "EIO"}),
    "K13": Attack("32-bit system calls", {"SIGSYS"}, alone=True),
    "K14": Attack("chroot", DENIED, alone=True),
    "K15": Attack("name_to_handle_at", DENIED),
    "K16": Attack("execute a program in memory", PATHS | NO_FORK),
    "K17": Attack("execute a program in its data", PATHS | NO_FORK),
    "I01": Attack("use a leaked folder descriptor", {"EBADF"}),
    "I02": Attack("use a leaked file descriptor", {"EBADF"}),
    "I03": Attack("read secrets in its environment", {"absent"}),
    "I04": Attack("inherit PYTHON and LD variables", {"absent"}),
    "I05": Attack("inherit ignored signals", {"absent"}),
}
"""F19, K18 and the impostors need more than a plugin: they are tests of their own."""
