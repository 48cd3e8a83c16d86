"""`bench idle`: what a connection costs that is logged in and silent."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from wkhost.bench.certificate import write_certificate
from wkhost.bench.errors import BenchError
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Report, look_around
from wkhost.bench.samples import ratio
from wkhost.bench.server import Server, own_server, temporary_folder
from wkhost.bench.silent import SilentUser
from wkhost.bench.usage import cpu_s, memory

_WARM_CONNECTIONS = 50
"""Opened and closed before the first look, so that what is made once is not counted."""
_SETTLE_S = 1.0
_SPARE_FILES = 200


class IdleOptions(msgspec.Struct, frozen=True):
    """`hold_s` is the silence after the last login, before memory is looked at."""

    connections: int = 2000
    transports: tuple[str, ...] = ("tcp", "ws", "wss")
    hold_s: float = 3.0


class IdleResult(msgspec.Struct, frozen=True):
    """One transport. Memory of the server's own process, without what the kernel holds."""

    transport: str
    ok: bool
    connections: int
    answering: int
    """Connections that answered a PING after the silence."""
    pss_bytes_per_connection: int
    rss_bytes_per_connection: int
    pss_mib_before: float
    pss_mib_after: float
    login_cpu_us: float
    """Of the server, per login."""
    idle_cpu_cores: float
    """Of the server, during the silence."""


def measure_idle(options: IdleOptions, tell: Tell, server: Server | None = None) -> Report:
    """Measure each transport on a fresh server of our own, or on the running `server`.

    Raises BenchError.
    """
    unknown = set(options.transports) - {"tcp", "ws", "wss"}
    if unknown:
        raise BenchError(f"--transports: expected tcp, ws or wss, got {', '.join(sorted(unknown))}")
    _need_files(options.connections)
    steps = Steps(2 * len(options.transports), tell)
    results = []
    with temporary_folder() as folder:
        around = look_around(folder)
        for transport in options.transports:
            steps.begin(f"{transport}: starting a server")
            with _server_for(transport, folder, server) as serving:
                steps.end()
                steps.begin(f"{transport}: {options.connections} logins")
                results.append(_measure(transport, options, serving, steps))
                steps.end()
        return around.report("idle", options, results)


def _need_files(connections: int) -> None:
    """Raise the limit of open files as far as it goes; the server inherits it."""
    needed = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(
            f"--connections: {connections} need {needed} open files, this process may have {hard}"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def _server_for(transport: str, folder: Path, running: Server | None) -> Iterator[Server]:
    if running is not None:
        yield running
        return
    root = folder / transport
    root.mkdir()
    settings: dict[str, Any] = {}
    if transport == "wss":
        cert_file, key_file = write_certificate(root)
        settings = {
            "wssAddr": "wss://127.0.0.1:0",
            "wssConfig.certFile": str(cert_file),
            "wssConfig.keyFile": str(key_file),
        }
    with own_server(root, settings=settings) as server:
        yield server


def _measure(transport: str, options: IdleOptions, server: Server, steps: Steps) -> IdleResult:
    address: tuple[str, int] | None = getattr(server, transport)
    if address is None:
        raise BenchError(f"--transports: the server has no address for {transport}")
    run = token_hex(4)
    with ExitStack() as stack:
        for number in range(_WARM_CONNECTIONS):
            SilentUser(transport, address, f"bench-{run}-warm-{number}").close()
        time.sleep(_SETTLE_S)
        before = memory(server.pid)
        cpu_before = cpu_s(server.pid)
        users: list[SilentUser] = []
        for number in range(options.connections):
            user = SilentUser(transport, address, f"bench-{run}-{number}")
            stack.callback(user.close)
            users.append(user)
            steps.at(number / options.connections)
        cpu_after = cpu_s(server.pid)
        time.sleep(options.hold_s)
        cpu_held = cpu_s(server.pid)
        after = memory(server.pid)
        count = len(users)
        answering = sum(user.answers_ping() for user in users)
        return IdleResult(
            transport=transport,
            ok=answering == count,
            connections=count,
            answering=answering,
            pss_bytes_per_connection=round((after.pss - before.pss) / count),
            rss_bytes_per_connection=round((after.rss - before.rss) / count),
            pss_mib_before=ratio(before.pss, 2**20),
            pss_mib_after=ratio(after.pss, 2**20),
            login_cpu_us=ratio((cpu_after - cpu_before) * 1e6, count, 1),
            idle_cpu_cores=ratio(cpu_held - cpu_after, options.hold_s, 4),
        )
