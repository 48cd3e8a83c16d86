"""What there is to attack: files, sockets and processes of a host, all made for the test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.attacks.real import make_environment, site_of

VICTIM = """
import ctypes, signal, sys
secret = ctypes.create_string_buffer(b"SECRET of another plugin")
def told(number, frame):
    print("SIGNALLED", flush=True)
signal.signal(signal.SIGUSR1, told)
print(ctypes.addressof(secret), flush=True)
while True:
    signal.pause()
"""


class Targets:
    """`plain` is what the attacks get to know. `received` counts what reached the host.

    `python` is the interpreter of the environment that `real` plugins run in, `listed_port` the one
    on 127.0.0.1 that they may reach."""

    def __init__(self) -> None:
        self.plain: dict[str, Any] = {}
        self.received: dict[str, int] = {}
        self.free_port = 0
        self.listed_port = 0
        self.python = Path()
        self._victim: subprocess.Popen[bytes] | None = None

    def victim_was_signalled(self, within_s: float) -> bool:
        """Whether the victim has told of a signal since the last question."""
        assert self._victim is not None
        assert self._victim.stdout is not None
        descriptor = self._victim.stdout.fileno()
        if not select.select([descriptor], [], [], within_s)[0]:
            return False
        return b"SIGNALLED" in os.read(descriptor, 4096)


@contextmanager
def targets(folder: Path) -> Iterator[Targets]:
    """Lay everything out below `folder`, and take it away again."""
    found = Targets()
    with ExitStack() as stack:
        _files(found, folder, stack)
        _sockets(found, folder, stack)
        _victim(found, stack)
        yield found


def _files(found: Targets, folder: Path, stack: ExitStack) -> None:
    host = folder / "host"
    (host / ".ssh").mkdir(parents=True)
    (host / "secret").write_text("SECRET of the host")
    (host / ".ssh" / "id_ed25519").write_text("SECRET key")
    other = folder / "plugins" / "other" / "data"
    other.mkdir(parents=True)
    (folder / "plugins").chmod(0o700)
    (other / "kv").write_text("SECRET of another plugin")
    found.python = make_environment(folder / "environment")
    open_dir = folder / "open"
    open_dir.mkdir()
    open_dir.chmod(0o777)
    shm = Path("/dev/shm") / f"wkhost-attack-{os.getpid()}"
    shm.write_text("SECRET in shared memory")
    stack.callback(shm.unlink)
    secret_fd = os.open(host / "secret", os.O_RDONLY)
    stack.callback(os.close, secret_fd)
    folder_fd = os.open(host, os.O_RDONLY)
    stack.callback(os.close, folder_fd)
    groups = [Path("/sys/fs/cgroup/pids/cgroup.procs"), Path("/sys/fs/cgroup/cgroup.procs")]
    found.plain |= {
        "secret": str(host / "secret"),
        "ssh_key": str(host / ".ssh" / "id_ed25519"),
        "host_dir": str(host),
        "other_data": str(other / "kv"),
        "site": str(site_of(found.python)),
        "open_dir": str(open_dir),
        "shm_file": str(shm),
        "cgroup": str(next((path for path in groups if path.exists()), groups[0])),
        "host_pid": os.getpid(),
        "host_fd": secret_fd,
        "leaked_file": secret_fd,
        "leaked_dir": folder_fd,
        "setuid": os.environ.get("WK_ATTACK_SETUID", "/nonexistent"),
        "uid": os.geteuid(),
        "daemon": f"wkd{os.getpid()}",
    }


def _sockets(found: Targets, folder: Path, stack: ExitStack) -> None:
    over = threading.Event()

    def listening(name: str, sock: socket.socket) -> socket.socket:
        stack.enter_context(sock)
        found.received[name] = 0
        thread = threading.Thread(target=_count, args=(found, name, sock, over))
        thread.start()
        stack.callback(thread.join)
        return sock

    tcp = listening("tcp", socket.create_server(("", 0)))
    listed = listening("listed", socket.create_server(("127.0.0.1", 0)))
    found.listed_port = listed.getsockname()[1]
    tcp6 = listening("tcp6", socket.create_server(("::1", 0), family=socket.AF_INET6))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    listening("udp", udp)
    for name in ("socket", "datagram", "link", "abstract"):
        kind = socket.SOCK_DGRAM if name == "datagram" else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_UNIX, kind)
        path = f"wkhost-attack-{os.getpid()}" if name == "abstract" else str(folder / name)
        sock.bind("\0" + path if name == "abstract" else path)
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        listening(name, sock)
        found.plain[name] = path
    stack.callback(over.set)
    with socket.create_server(("127.0.0.1", 0)) as free:
        found.free_port = free.getsockname()[1]
    addresses = [
        (name, each.address)
        for name, listed in psutil.net_if_addrs().items()
        for each in listed
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    interface, lan = addresses[0] if addresses else ("lo", "127.0.0.1")
    libc = ctypes.CDLL(None)
    shmid = libc.shmget(0, 4096, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    ctypes.memmove(libc.shmat(shmid, None, 0), b"SECRET", 6)
    stack.callback(libc.shmctl, shmid, 0, None)
    found.plain |= {
        "port": tcp.getsockname()[1],
        "listed": f"127.0.0.1:{found.listed_port}",
        "port6": tcp6.getsockname()[1],
        "udp_port": udp.getsockname()[1],
        "free_port": found.free_port,
        "lan": lan,
        "interface": interface,
        "shmid": shmid,
    }


def _count(found: Targets, name: str, sock: socket.socket, over: threading.Event) -> None:
    """Count connections, or datagrams."""
    sock.settimeout(0.1)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            if sock.type == socket.SOCK_DGRAM:
                sock.recv(100)
            else:
                connection, _ = sock.accept()
                with connection:
                    connection.settimeout(1)
                    connection.recv(100)
            found.received[name] += 1


def _victim(found: Targets, stack: ExitStack) -> None:
    environment = {"VICTIM_SECRET": "SECRET in an environment"}
    victim = subprocess.Popen(
        [sys.executable, "-I", "-c", VICTIM], stdout=subprocess.PIPE, env=environment
    )
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    assert victim.stdout is not None
    stack.callback(victim.stdout.close)
    found.plain["victim"] = victim.pid
    found.plain["address"] = int(os.read(victim.stdout.fileno(), 100))
    found._victim = victim
