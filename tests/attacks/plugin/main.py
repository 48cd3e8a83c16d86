"""A plugin that attacks: every function tries one thing that no plugin may do.

Runs the attacks that $HOME/plan.json names, one after the other, and prints one line for each. A
function that returns has succeeded. One that was stopped raises the OSError it met, or Absent when
what it looked for is not there. It is meant to be imported by the SDK like any plugin, and ends
the process itself. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(os.environ["HOME"])
PLAN: dict[str, Any] = json.loads((DATA / "plan.json").read_text())
T: dict[str, Any] = PLAN["targets"]
SCRATCH = DATA if PLAN["scratch"] == "data" else Path(os.environ.get("TMPDIR", "/tmp"))
MIB = 1024 * 1024
CLONE_NEWUSER = 0x10000000
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_X86 = platform.machine() == "x86_64"
NR = {
    "add_key": 248 if _X86 else 217,
    "bpf": 321 if _X86 else 280,
    "perf_event_open": 298 if _X86 else 241,
    "userfaultfd": 323 if _X86 else 282,
    "name_to_handle_at": 303 if _X86 else 264,
    "process_vm_readv": 310 if _X86 else 270,
    "ptrace": 101 if _X86 else 117,
    "shmat": 30 if _X86 else 196,
    "io_uring_setup": 425,
    "clone3": 435,
    "pidfd_getfd": 438,
}
ATTACKS: dict[str, Callable[[], object]] = {}


class Absent(Exception):  # noqa: N818 - an outcome, not an error
    """What the attack looked for is not there."""


class Busy(Exception):  # noqa: N818 - an outcome, not an error
    """Without any limit it would not have got more: the machine had nothing left."""


def attack(function: Callable[[], object]) -> Callable[[], object]:
    ATTACKS[function.__name__[:3].upper()] = function
    return function


def call(name: str, *arguments: Any) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = libc.syscall(ctypes.c_long(NR[name]), *values)
    return checked(result, name)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, what)
    return result


def read(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def need(condition: object) -> None:
    if not condition:
        raise Absent


# --- files --------------------------------------------------------------------------------------


@attack
def f01_read_shadow() -> None:
    read("/etc/shadow")


@attack
def f02_read_secret_of_the_host() -> None:
    need(b"SECRET" in read(T["secret"]))


@attack
def f03_read_ssh_key() -> None:
    need(b"SECRET" in read(T["ssh_key"]))


@attack
def f04_list_host_dir() -> None:
    os.listdir(T["host_dir"])


@attack
def f05_stat_secret() -> None:
    os.stat(T["secret"])


@attack
def f06_write_host_dir() -> None:
    Path(T["host_dir"], "planted").write_text("x")


@attack
def f07_write_open_dir() -> None:
    Path(T["open_dir"], "planted").write_text("x")


@attack
def f08_change_own_code() -> None:
    with open(Path(__file__).with_name("extra.py"), "a") as file:
        file.write("\n")


@attack
def f09_touch_secret() -> None:
    os.utime(T["secret"])


@attack
def f10_data_of_another_plugin() -> None:
    read(T["other_data"])


@attack
def f11_symlink_to_secret() -> None:
    link = DATA / "link"
    link.symlink_to(T["secret"])
    need(b"SECRET" in read(link))


@attack
def f12_hardlink_secret() -> None:
    os.link(T["secret"], DATA / "hard")


@attack
def f13_through_proc_root() -> None:
    need(b"SECRET" in read(f"/proc/{T['host_pid']}/root{T['secret']}"))


@attack
def f14_raw_disk() -> None:
    for name in os.listdir("/sys/block") if os.path.isdir("/sys/block") else ():
        os.close(os.open(f"/dev/{name}", os.O_RDONLY))
        return
    raise Absent


@attack
def f15_write_core_pattern() -> None:
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attack
def f16_write_host_cgroup() -> None:
    os.close(os.open(T["cgroup"], os.O_WRONLY))


@attack
def f17_make_block_device() -> None:
    os.mknod(DATA / "disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))
    os.close(os.open(DATA / "disk", os.O_RDONLY))


@attack
def f18_shared_memory_file() -> None:
    need(b"SECRET" in read(T["shm_file"]))


@attack
def f20_plant_code_among_installed_packages() -> None:
    wrong: OSError | None = None
    for name in ("planted.pth", "wk_attack_dependency.py"):
        try:
            with open(Path(T["site"], name), "a") as file:
                file.write("# planted\n")
        except OSError as error:
            wrong = error
        else:
            return
    if wrong is not None:
        raise wrong


# --- network ------------------------------------------------------------------------------------


def send_tcp(host: str, port: int, protocol: int = 0) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(3)
        sock.connect((host, port))
        sock.sendall(b"hello")


@attack
def n01_tcp_loopback() -> None:
    send_tcp("127.0.0.1", T["port"])


@attack
def n02_tcp_lan_address() -> None:
    send_tcp(T["lan"], T["port"])


@attack
def n03_tcp_ipv6_loopback() -> None:
    send_tcp("::1", T["port6"])


@attack
def n04_listen_for_the_host() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", T["free_port"]))
        sock.listen()
        sock.settimeout(3)
        try:
            sock.accept()[0].close()
        except TimeoutError:
            print("NOBODY", flush=True)


@attack
def n05_udp_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", ("127.0.0.1", T["udp_port"]))


@attack
def n06_udp_outside() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", ("192.0.2.1", 53))


@attack
def n07_tcp_fast_open() -> None:
    with socket.socket() as sock:
        sock.sendto(b"hello", 0x20000000, ("127.0.0.1", T["port"]))


@attack
def n08_mptcp() -> None:
    send_tcp("127.0.0.1", T["port"], 262)


@attack
def n09_packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attack
def n10_netlink() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(3)
        sock.send(struct.pack("=LHHLLBxHiLL", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
        found = b""
        while found[-20:][4:6] != struct.pack("=H", 3) and len(found) < MIB:
            found += sock.recv(65536)
        need(T["interface"].encode() + b"\0" in found)


@attack
def n11_vsock() -> None:
    socket.socket(40, socket.SOCK_STREAM).close()


@attack
def n12_kernel_crypto() -> None:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as sock:
        sock.bind(("hash", "sha256"))


class Refused(Exception):  # noqa: N818 - an outcome, not an error
    """The proxy has said no."""


def ask_proxy(request: str) -> None:
    """Send "hello" to where the proxy connects to. Raises Refused with the status."""
    port = int(os.environ["HTTPS_PROXY"].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(request.encode())
        answer = sock.recv(4096)
        status = answer.split(b" ")[1].decode()
        if status != "200":
            raise Refused(f"HTTP {status}")
        sock.sendall(b"hello")


def go_out(*authorities: str, form: str = "CONNECT {} HTTP/1.1\r\nHost: {}\r\n\r\n") -> None:
    """Reach the host as a client does: by the proxy where there is one, else straight."""
    if not PLAN["real"]:
        send_tcp("127.0.0.1", T["port"])
        return
    refused: Refused | None = None
    for authority in authorities:
        try:
            ask_proxy(form.format(authority, authority))
        except Refused as error:
            refused = error
        else:
            return
    if refused is not None:
        raise refused


@attack
def n13_host_not_listed() -> None:
    go_out(f"localhost:{T['port']}", f"{T['lan']}:{T['port']}", "example.com:443")


@attack
def n14_port_not_listed() -> None:
    go_out(f"127.0.0.1:{T['port']}")


@attack
def n15_other_spellings() -> None:
    port, listed = T["port"], T["listed"]
    hosts = ("2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0", "0.0.0.0", "")
    tricks = (f"{listed}@127.0.0.1:{port}", f"{listed}\x00127.0.0.1:{port}", T["link"])
    go_out(*(f"{host}:{port}" for host in hosts), *tricks)


@attack
def n16_plain_http() -> None:
    go_out(
        f"127.0.0.1:{T['port']}", T["listed"], form="GET http://{}/ HTTP/1.1\r\nHost: {}\r\n\r\n"
    )


# --- other sockets and shared things ------------------------------------------------------------


def connect_unix(address: str, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(3)
        sock.connect(address)
        sock.send(b"hello")


@attack
def u01_socket_of_another_plugin() -> None:
    connect_unix(T["socket"])


@attack
def u02_abstract_socket() -> None:
    connect_unix("\0" + T["abstract"])


@attack
def u03_datagram() -> None:
    connect_unix(T["datagram"], socket.SOCK_DGRAM)


@attack
def u04_sysv_memory() -> None:
    address = call("shmat", T["shmid"], 0, 0o10000)
    need(ctypes.string_at(address, 6) == b"SECRET")


@attack
def u05_admin_link() -> None:
    connect_unix(T["link"])


@attack
def u06_socket_beside_the_servers() -> None:
    inside = "/run/wk"
    folder = inside if os.path.isdir(inside) else os.path.dirname(T["socket"])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{folder}/planted")
    os.unlink(f"{folder}/planted")


# --- processes ----------------------------------------------------------------------------------


@attack
def p01_signal_host() -> None:
    os.kill(T["host_pid"], 0)


@attack
def p02_signal_another_plugin() -> None:
    os.kill(T["victim"], signal.SIGUSR1)


@attack
def p03_ptrace() -> None:
    call("ptrace", 16, T["victim"], 0, 0)
    os.waitpid(T["victim"], 0x40000000)
    call("ptrace", 17, T["victim"], 0, 0)


@attack
def p04_environment_of_another() -> None:
    need(b"SECRET" in read(f"/proc/{T['victim']}/environ"))


@attack
def p05_memory_of_another() -> None:
    with open(f"/proc/{T['victim']}/mem", "rb", 0) as file:
        file.seek(T["address"])
        need(file.read(6) == b"SECRET")


@attack
def p06_process_vm_readv() -> None:
    buffer = ctypes.create_string_buffer(6)
    vector = ctypes.c_uint64 * 2
    local, remote = vector(ctypes.addressof(buffer), 6), vector(T["address"], 6)
    call("process_vm_readv", T["victim"], local, 1, remote, 1, 0)
    need(buffer.raw == b"SECRET")


@attack
def p07_take_descriptor() -> None:
    pidfd = os.pidfd_open(T["host_pid"])
    taken = call("pidfd_getfd", pidfd, T["host_fd"], 0)
    need(b"SECRET" in os.pread(taken, 100, 0))


@attack
def p08_see_processes() -> None:
    need(str(T["host_pid"]) in os.listdir("/proc"))
    need(read(f"/proc/{T['host_pid']}/cmdline"))


@attack
def p09_limits_of_the_host() -> None:
    limits = resource.prlimit(T["host_pid"], resource.RLIMIT_NOFILE)
    resource.prlimit(T["host_pid"], resource.RLIMIT_NOFILE, limits)


@attack
def p10_enter_namespaces() -> None:
    descriptor = os.open(f"/proc/{T['host_pid']}/ns/net", os.O_RDONLY)
    checked(libc.setns(descriptor, 0x40000000), "setns")


@attack
def p11_survive_as_daemon() -> None:
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            libc.prctl(15, T["daemon"].encode(), 0, 0, 0)
            os.write(writing, b"x")
            time.sleep(20)
        os._exit(0)
    os.wait()
    # The host looks for it by its name: not before it has that.
    os.close(writing)
    need(os.read(reading, 1))


# --- resources ----------------------------------------------------------------------------------


@attack
def r01_fork_bomb() -> None:
    children: list[int] = []
    try:
        for _ in range(400):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def fill(count: int) -> bytearray:
    """Take and touch `count` MiB."""
    memory = bytearray(count * MIB)
    memory[::4096] = b"x" * len(range(0, len(memory), 4096))
    return memory


@attack
def r02_memory_of_one_process() -> None:
    fill(1024)


@attack
def r03_memory_of_many_processes() -> None:
    reading, writing = os.pipe()
    children: list[int] = []
    try:
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(MemoryError):
                    memory = fill(200)
                    os.write(writing, b"x")
                    signal.pause()
                    del memory
                os._exit(1)
            children.append(pid)
        os.close(writing)
        waiting = 6
        while waiting and (found := os.read(reading, 6)):
            waiting -= len(found)
            dead = os.waitpid(-1, os.WNOHANG)[0]
            need(dead == 0)
        need(waiting == 0)
        time.sleep(PLAN["patience"])
        need(os.waitpid(-1, os.WNOHANG)[0] == 0)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@attack
def r04_memory_without_a_process() -> None:
    for number in range(16):
        descriptor = os.memfd_create(f"m{number}")
        for _ in range(50):
            os.write(descriptor, bytes(MIB))
    time.sleep(PLAN["patience"])


@attack
def r05_descriptors() -> None:
    found: list[int] = []
    try:
        found.extend(os.dup(0) for _ in range(1000))
    finally:
        for descriptor in found:
            os.close(descriptor)


def idle_s() -> float:
    """Return for how long the machine's cores have been idle, all together, in seconds."""
    return int(read("/proc/stat").split(b"\n")[0].split()[4]) / os.sysconf("SC_CLK_TCK")


@attack
def r06_cpu() -> None:
    """With a limit of 20 %, 4 s of a hungry process are 0.8 s of CPU.

    On a busy machine nobody gets much: then another look tells more.
    """
    block = bytes(MIB)
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            hashlib.sha256(block)

    threads = [threading.Thread(target=burn) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(PLAN["settle"])
    used = 0.0
    for _ in range(PLAN["looks"]):
        before, idle_before = time.process_time(), idle_s()
        time.sleep(4)
        used, idle = max(used, time.process_time() - before), idle_s() - idle_before
        if used > 1.2:
            break
    over.set()
    for thread in threads:
        thread.join()
    print(f"used {used:.2f} s of CPU", flush=True)
    if used <= 1.2 and PLAN["looks"] > 1 and idle < 0.4:
        raise Busy
    need(used > 1.2)


def write_files(count: int, size: int) -> None:
    folder = SCRATCH / "fill"
    folder.mkdir()
    block = bytes(MIB)
    try:
        for number in range(count):
            with open(folder / str(number), "wb", 0) as file:
                for _ in range(size // MIB):
                    file.write(block)
        time.sleep(PLAN["patience"])
    finally:
        shutil.rmtree(folder)


@attack
def r07_disk_one_file() -> None:
    write_files(1, 200 * MIB)


@attack
def r08_disk_many_files() -> None:
    write_files(200, MIB)


@attack
def r09_inodes() -> None:
    write_files(8_000, 0)


@attack
def r10_core_dump() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (MIB, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except ValueError:
        raise OSError(errno.EPERM, "setrlimit") from None
    need(libc.prctl(3, 0, 0, 0, 0) == 1)


@attack
def r11_own_priority() -> None:
    os.nice(-10)


@attack
def r12_mlock() -> None:
    memory = mmap.mmap(-1, 64 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    checked(libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(64 * MIB)), "mlock")


@attack
def r13_shared_anonymous_memory() -> None:
    memory = mmap.mmap(-1, 1024 * MIB, mmap.MAP_SHARED)
    for offset in range(0, len(memory), 4096):
        memory[offset] = 1
    time.sleep(PLAN["patience"])


# --- the kernel ---------------------------------------------------------------------------------


@attack
def k01_setuid_program() -> None:
    need(os.geteuid() != 0)
    need(int(subprocess.check_output([T["setuid"], "-u"])) == 0)


@attack
def k02_execute_su() -> None:
    subprocess.run(["/bin/su", "--version"], check=True, stdout=subprocess.DEVNULL)


@attack
def k03_capabilities() -> None:
    text = read("/proc/self/status").decode()
    lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    if int(lines["CapEff"], 16) == 0:
        checked(libc.setuid(0), "setuid")
        need(os.geteuid() != T["uid"])


@attack
def k04_mount() -> None:
    folder = DATA / "mnt"
    folder.mkdir()
    checked(libc.mount(b"none", bytes(folder), b"tmpfs", 0, 0), "mount")
    libc.umount2(bytes(folder), 2)


@attack
def k05_unshare_user() -> None:
    checked(libc.unshare(CLONE_NEWUSER), "unshare")


@attack
def k06_clone3_user() -> None:
    arguments = (ctypes.c_uint64 * 11)(CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD)
    pid = call("clone3", arguments, ctypes.sizeof(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@attack
def k07_add_key() -> None:
    call("add_key", b"user", b"wk", b"x", 1, -3)


@attack
def k08_bpf() -> None:
    attributes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
    os.close(call("bpf", 0, attributes, ctypes.sizeof(attributes)))


@attack
def k09_perf() -> None:
    attributes = (ctypes.c_uint32 * 32)(1, 128)
    attributes[10] = 0b1100000  # not the kernel, not the hypervisor
    os.close(call("perf_event_open", attributes, 0, -1, -1, 0))


@attack
def k10_userfaultfd() -> None:
    os.close(call("userfaultfd", 1))


@attack
def k11_io_uring() -> None:
    os.close(call("io_uring_setup", 4, (ctypes.c_uint32 * 30)()))


@attack
def k12_type_into_terminal() -> None:
    descriptor = os.open("/dev/tty", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x5412, b"x")


@attack
def k13_32_bit_call() -> None:
    need(_X86)
    # mov eax, 20 (getpid); int 0x80; ret
    code = bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3])
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    need(function() == os.getpid())


@attack
def k14_chroot() -> None:
    os.chroot(DATA)


@attack
def k15_file_handle() -> None:
    handle = (ctypes.c_uint32 * 40)(128)
    call("name_to_handle_at", -100, b"/", handle, ctypes.byref(ctypes.c_int()), 0)


def run_file(path: str, descriptors: tuple[int, ...] = ()) -> None:
    subprocess.run([path], check=True, pass_fds=descriptors)


@attack
def k16_execute_memory() -> None:
    descriptor = os.memfd_create("true", 0)
    os.write(descriptor, read("/bin/true"))
    run_file(f"/proc/self/fd/{descriptor}", (descriptor,))


@attack
def k17_execute_own_file() -> None:
    path = DATA / "true"
    path.write_bytes(read("/bin/true"))
    path.chmod(0o755)
    run_file(str(path))


# --- what is inherited --------------------------------------------------------------------------


@attack
def i01_leaked_folder() -> None:
    os.close(os.open("secret", os.O_RDONLY, dir_fd=T["leaked_dir"]))


@attack
def i02_leaked_file() -> None:
    need(b"SECRET" in os.pread(T["leaked_file"], 100, 0))


@attack
def i03_environment() -> None:
    need("SECRET" in os.environ.get("WK_HOST_SECRET", ""))


@attack
def i04_loader_variables() -> None:
    need(os.environ.get("PYTHONBREAKPOINT"))


@attack
def i05_signals() -> None:
    need(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN)


def outcome(function: Callable[[], object]) -> str:
    try:
        function()
    except Absent:
        return "absent"
    except Busy:
        return "busy"
    except Refused as error:
        return str(error)
    except TimeoutError as error:
        # A connection that nobody answers is not one that was refused.
        return f"error {error!r}" if error.errno is None else errno.errorcode[error.errno]
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, f"error {error!r}")
    except MemoryError:
        return "MemoryError"
    except RuntimeError as error:
        return f"error {error!r}"
    except subprocess.CalledProcessError as error:
        return f"error {error!r}"
    return "escaped"


def be_real() -> None:
    """Use what an installed plugin has: its package, and the way to the one host it may reach."""
    need(importlib.import_module(PLAN["real"]["dependency"]).INSTALLED)
    ask_proxy(f"CONNECT {T['listed']} HTTP/1.1\r\n\r\n")
    print("REAL", flush=True)


def main() -> None:
    if PLAN["real"]:
        be_real()
    for name in PLAN["attacks"]:
        print(f"BEGIN {name}", flush=True)
        print(f"END {name} {outcome(ATTACKS[name])}", flush=True)
    print("DONE", flush=True)
    sys.stdout.flush()
    os._exit(0)


main()
