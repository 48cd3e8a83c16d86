"""Attacks that tell whether a layer holds. A script for a probe sandbox; never imported.

Started by boot as `probe_inside.py TARGETS`; TARGETS is a JSON object with what the host has laid
out. Prints a JSON object: layer -> a list of [attack, error name or "escaped"].
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

ESCAPED = "escaped"
libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments: Any) -> None:
    """A system call by number; raises OSError."""
    if libc.syscall(*(ctypes.c_long(value) for value in arguments)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def outcome(attack: Callable[[], object]) -> str:
    try:
        attack()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__
    return ESCAPED


def abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{name}")


def many_threads(count: int) -> None:
    stop = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            threads.append(thread)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def main() -> None:
    targets = json.loads(sys.argv[1])
    secret, folder = targets["secret"], os.path.dirname(targets["secret"])
    attacks: dict[str, dict[str, Callable[[], object]]] = {
        "fs": {
            "read a file of the host": lambda: open(secret).close(),
            "make a file beside it": lambda: os.mkdir(folder + "/planted"),
            "change its own code": lambda: os.mkdir("/plugin/planted"),
        },
        "net": {
            "connect to the host": lambda: socket.create_connection(
                ("127.0.0.1", targets["port"]), 1
            ),
            "connect to an abstract socket": lambda: abstract(targets["abstract"]),
        },
        "pid": {"signal the host": lambda: os.kill(targets["pid"], 0)},
        "syscalls": {
            "make a key": lambda: call(targets["add_key"], 0, 0, 0, 0, 0),
            "fork": os.fork,
            "open a packet socket": lambda: socket.socket(socket.AF_PACKET),
        },
        "landlock": {"write to /proc": lambda: open("/proc/self/comm", "w").close()},
        "processes": {"start threads": lambda: many_threads(targets["threads"])},
        "data": {"take memory": lambda: mmap.mmap(-1, targets["bytes"], mmap.MAP_PRIVATE)},
    }
    found = {
        layer: [[name, outcome(attack)] for name, attack in named.items()]
        for layer, named in attacks.items()
    }
    print(json.dumps(found))  # noqa: T201 - the answer of this program


if __name__ == "__main__":
    main()
