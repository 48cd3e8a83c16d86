"""The API worker process: uvicorn over the listening socket and the link it was given.

Started by `ApiWorker` as `python -m wkhost.api.worker` with two inherited descriptors. The settings
come as one line over the control socket; the worker answers `ready` there. When the control socket
ends, the kernel process has gone and so does the worker. SIGTERM drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import structlog
import uvicorn
import uvloop

from wkhost import log as logs
from wkhost.api.answers import CORS_HEADERS
from wkhost.api.app import ApiApp
from wkhost.api.docs import docs_pages
from wkhost.api.http_protocol import BoundedHttpProtocol
from wkhost.api.kernel import Kernel
from wkhost.api.metrics import MetricsApp
from wkhost.api.routes import ROUTES
from wkhost.api.worker_settings import READY, WorkerSettings, decode_settings
from wkhost.link.client_async import AsyncLinkClient
from wkhost.link.contract import API_WORKER

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_KEEP_ALIVE_S = 75
_MAX_CONNECTIONS = 10_000


class _Server(uvicorn.Server):
    """uvicorn's server without its own signal handling, so that SIGTERM ends in exit status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _api(settings: WorkerSettings, link: AsyncLinkClient) -> ApiApp:
    return ApiApp(
        Kernel(link),
        ROUTES,
        pages=docs_pages(ROUTES, mode=settings.mode),
        manager_token=settings.manager_token,
        max_body_bytes=settings.max_body_bytes,
    )


def _server(app: ApiApp | MetricsApp, settings: WorkerSettings) -> _Server:
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        headers=[(name.decode(), value.decode()) for name, value in CORS_HEADERS],
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
    )
    return _Server(config)


async def _serve(
    settings: WorkerSettings,
    listen: socket.socket,
    manager: socket.socket | None,
    control: socket.socket,
) -> None:
    """Link, then serve until SIGTERM or the end of the control socket; finish what is on its way.

    Until the link is there nothing is accepted: requests wait in the socket's queue.
    """
    link = AsyncLinkClient(
        Path(settings.link_path),
        role=API_WORKER,
        token=settings.link_token,
        timeout_s=settings.answer_timeout_s,
    )
    servers = {listen: _server(_api(settings, link), settings)}
    if manager is not None:
        servers[manager] = _server(MetricsApp(Kernel(link)), settings)
    linking = asyncio.create_task(link.run())
    await _first_of(linking, asyncio.create_task(link.wait_connected()))
    if not linking.done():
        _stop_on_request(list(servers.values()), control)
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not look at it
        serving = [
            asyncio.create_task(server.serve(sockets=[sock])) for sock, server in servers.items()
        ]
        await asyncio.get_running_loop().sock_sendall(control, READY)
        await asyncio.wait((linking, *serving), return_when=asyncio.FIRST_COMPLETED)
        for server in servers.values():
            server.should_exit = True
        await asyncio.gather(*serving)
    linking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await linking


async def _first_of(lasting: asyncio.Task[None], passing: asyncio.Task[None]) -> None:
    """Wait until either has ended; `passing` has ended then."""
    await asyncio.wait((lasting, passing), return_when=asyncio.FIRST_COMPLETED)
    passing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await passing


def _stop_on_request(servers: Sequence[uvicorn.Server], control: socket.socket) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    def parent_gone() -> None:
        """The control socket carries nothing more, so it is readable only at its end."""
        loop.remove_reader(control)
        for server in servers:
            server.should_exit = server.force_exit = True

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_reader(control, parent_gone)


def _die_with_parent(parent_pid: int) -> None:
    """Have the system kill us with the thread that started us; leave if that has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        raise SystemExit("the kernel process has ended")


def _read_line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = control.recv(4096)
        if not part:
            raise EOFError("the kernel process ended before it sent the settings")
        line += part
    return line


@click.command()
@click.option("--listen-fd", type=int, required=True, help="Listening TCP socket.")
@click.option("--manager-fd", type=int, default=-1, help="Listening socket of the metrics.")
@click.option("--control-fd", type=int, required=True, help="Socket to the kernel process.")
@click.option("--parent-pid", type=int, required=True, help="The kernel process.")
def main(listen_fd: int, manager_fd: int, control_fd: int, parent_pid: int) -> None:
    """Serve business API and metrics for a kernel process. Not meant to be started by hand."""
    _die_with_parent(parent_pid)
    with socket.socket(fileno=control_fd) as control:
        settings = decode_settings(_read_line(control))
        logs.configure(settings.log_level)
        # Its start and stop are the supervisor's to tell.
        logging.getLogger("uvicorn").setLevel(max(settings.log_level, logging.WARNING))
        control.setblocking(False)
        listen = socket.socket(fileno=listen_fd)
        manager = None if manager_fd < 0 else socket.socket(fileno=manager_fd)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, listen, manager, control))


if __name__ == "__main__":
    main()
