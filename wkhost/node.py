"""The composition root: builds every part of one server, runs them, stops them in order.

Nesting order is stop order: the store is opened first and closed last, plugins run before the first
message can come, the doors (gateway, link, API worker) open last and shut first. On SIGTERM or
SIGINT the doors stop reading, what was admitted is answered and delivered, connections are closed
silently (so clients come back), and the process ends with 0, all within `STOP_S`.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import structlog
import trio

from wkhost import __version__
from wkhost.api.supervisor import ApiWorker
from wkhost.clock import Clock
from wkhost.config import Settings
from wkhost.config.values import Address
from wkhost.errors import ConfigError
from wkhost.gateway.settings import BoundAddresses
from wkhost.gateway.sweep import Gateway
from wkhost.hooks.specs import hookimpl, host_hooks
from wkhost.kernel.kernel import Kernel
from wkhost.link.contract import SendMessage, Sent
from wkhost.link.runtime import LINK_SOCKET, runtime_directory
from wkhost.link.server import LinkServer, ignore_refusal
from wkhost.node_metrics import MetricsSource
from wkhost.node_settings import (
    call_records,
    egress_allow,
    egress_private,
    gateway_settings,
    kernel_settings,
    plugin_rules,
    sandbox_policy,
    store_options,
    worker_settings,
)
from wkhost.plugin_host.desk import Desk
from wkhost.plugin_host.host import PluginHost
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.plugin_host.process import descends_from
from wkhost.plugin_host.sandbox.checks import forbid_dumps
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.secret_store import SecretKey
from wkhost.store.store import Store, open_store
from wkhost.types import Message

STOP_S = 10.0
"""From SIGTERM to the end of the process, at most."""
WORKER_DRAIN_S = 3.0
"""Of that, for the API worker to finish its requests, at most."""
PLUGINS_STOP_S = 2.0
CLOSE_S = 1.0
"""Of that, kept for closing the store."""
SWITCH_INTERVAL_S = 0.0005
"""How long the main thread may keep the GIL from the committer thread. At the default of 5 ms the
acknowledgement of an fsync came several times later beside a busy loop."""
HTTP_BACKLOG = 1024

Ready = Callable[[dict[str, str]], None]
"""Told once where everything listens: tcp, ws, wss, http, manager -> "host:port"."""

log = structlog.get_logger(__name__)


def serve(settings: Settings, *, plugins: list[str] | None, ready: Ready) -> int:
    """Run a server until SIGTERM or SIGINT; return the exit code.

    `plugins` is the set to start; None starts those enabled in the data directory. `ready` is
    called once everything listens.

    Raises: ConfigError, DataDirectoryError, StoreError, PluginError when the server cannot start.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    forbid_dumps()
    trio.run(Node(settings, plugins, ready).run)
    return 0


class Node:
    """One server and its parts."""

    def __init__(self, settings: Settings, plugins: list[str] | None, ready: Ready) -> None:
        self._settings = settings
        self._plugin_names = plugins
        self._ready = ready
        self._clock = Clock()
        self._stop = trio.Event()
        self._gateway: Gateway | None = None

    async def run(self) -> None:
        """Serve until told to stop."""
        self._settings.root_dir.mkdir(parents=True, exist_ok=True)
        async with trio.open_nursery() as signals:
            await signals.start(self._watch_signals)
            async with self._open_store() as store:
                await self._serve(store)
            signals.cancel_scope.cancel()

    @asynccontextmanager
    async def _open_store(self) -> AsyncIterator[Store]:
        settings = self._settings
        store = await open_store(settings.data_path, options=store_options(settings))
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                await store.close()

    async def _serve(self, store: Store) -> None:
        settings = self._settings
        gateway = self._gateway = Gateway(gateway_settings(settings), self._clock.wall_ms)
        events = host_hooks()
        kernel = Kernel(
            settings=kernel_settings(settings),
            store=store,
            outbox=gateway,
            clock=self._clock,
            node_id=settings.cluster.node_id,
            events=events,
        )
        with runtime_directory(settings.data_path) as runtime_dir:
            async with trio.open_nursery() as nursery:
                await nursery.start(kernel.run)
                plugins = None
                if settings.plugin.on:
                    plugins = self._plugin_host(kernel, runtime_dir)
                    events.register(_PluginEvents(plugins))
                    kernel.service.plugins = Desk(plugins)
                    await nursery.start(plugins.run)
                    await plugins.start_set(self._plugin_names)
                await self._open_doors(kernel, gateway, plugins, runtime_dir)
                nursery.cancel_scope.cancel()

    def _plugin_host(self, kernel: Kernel, runtime_dir: Path) -> PluginHost:
        settings = self._settings
        return PluginHost(
            plugins_dir=settings.plugin_path,
            runtime_dir=runtime_dir / "p",
            store=kernel.store,
            answers=kernel,
            services=_HostServices(kernel),
            chain_changed=kernel.chain_changed,
            max_payload_bytes=settings.limits.payload_bytes,
            host_version=__version__,
            records=call_records(settings),
            secret_key=SecretKey(settings.plugin.secret_key_file, settings.root_dir),
            egress_allow=egress_allow(settings),
            egress_private=egress_private(settings),
            rules=plugin_rules(settings),
            launcher=SandboxLauncher(
                sandbox_policy(settings),
                settings.plugin_path,
                private=(settings.data_path, runtime_dir),
            ),
        )

    async def _open_doors(
        self,
        kernel: Kernel,
        gateway: Gateway,
        plugins: PluginHost | None,
        runtime_dir: Path,
    ) -> None:
        """Let clients, back ends and operators in until told to stop; then drain."""
        settings = self._settings
        token = secrets.token_hex(32)
        link_path = runtime_dir / LINK_SOCKET
        with _listen(settings.http_addr, "httpAddr") as http, ExitStack() as stack:
            manager = None
            if settings.manager.on:
                manager = stack.enter_context(_listen(settings.manager.addr, "manager.addr"))
                kernel.service.metrics = MetricsSource(kernel, gateway.statistics, plugins)
            worker = ApiWorker(
                http,
                worker_settings(settings, str(link_path), token, WORKER_DRAIN_S),
                manager=manager,
            )

            def is_plugin_process(pid: int) -> bool:
                """Besides the API worker, only plugins are started by this process."""
                return pid != worker.pid and descends_from(pid, os.getpid())

            link = LinkServer(
                link_path,
                kernel.service,
                api_token=token,
                is_plugin_process=is_plugin_process,
                refused=ignore_refusal if plugins is None else plugins.auditor.link_refused,
            )
            async with trio.open_nursery() as doors:
                await doors.start(link.run)
                bound = await doors.start(gateway.run, kernel)
                async with trio.open_nursery() as back_ends:
                    await back_ends.start(worker.run)
                    # What lives as long as the server need not be looked at by the collector.
                    gc.collect()
                    gc.freeze()
                    self._ready(_addresses(bound, http, manager))
                    await self._stop.wait()
                    log.info("stopping", at_most_s=STOP_S)
                    stop_at = trio.current_time() + STOP_S
                    gateway.quiesce()
                    # The worker finishes its requests; they need the link and the kernel.
                    back_ends.cancel_scope.cancel()
                await self._drain(kernel, gateway, plugins, stop_at)
                doors.cancel_scope.cancel()

    async def _drain(
        self, kernel: Kernel, gateway: Gateway, plugins: PluginHost | None, stop_at: float
    ) -> None:
        """Answer and deliver what was admitted, then stop the plugins that decided on it."""
        with trio.move_on_at(stop_at - CLOSE_S - PLUGINS_STOP_S) as drained:
            await kernel.drain()
            await gateway.drain()
        if drained.cancelled_caught:
            log.warning("not_drained_in_time", **kernel.statistics()["send"])
        if plugins is not None:
            with trio.move_on_at(stop_at - CLOSE_S):
                await plugins.stop()

    async def _watch_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as arrived:
            task_status.started()
            async for number in arrived:
                if number == signal.SIGHUP:
                    self._reload_certificate()
                elif self._stop.is_set():
                    log.warning("stopping_at_once", signal=signal.Signals(number).name)
                    raise KeyboardInterrupt
                else:
                    self._stop.set()

    def _reload_certificate(self) -> None:
        if self._gateway is None:
            return
        try:
            self._gateway.reload_certificate()
        except ConfigError as error:
            log.error("certificate_not_reloaded", error=str(error))
        else:
            log.info("certificate_reloaded")


class _PluginEvents:
    """Tells the plugin host what happens in the kernel."""

    def __init__(self, plugins: PluginHost) -> None:
        self._plugins = plugins

    @hookimpl
    def messages_stored(self, messages: Sequence[Message]) -> None:
        self._plugins.log_grew()


class _HostServices:
    """What plugins may ask of the kernel, as the plugin host needs it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def send_message(self, request: SendMessage, door: str, hop: int) -> Sent:
        return await self._kernel.service.send(request, door=door, hop=hop)

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        return [
            OnlineDevice(s.device_flag, s.device_level, s.device_id)
            for s in self._kernel.presence.sessions(uid)
        ]

    async def recipients(self, message: Message) -> list[str]:
        return await self._kernel.recipients(message)

    async def offline_recipients(self, message: Message) -> list[str]:
        uids = await self._kernel.recipients(message)
        return self._kernel.presence.offline(uids)


def _listen(address: Address, key: str) -> socket.socket:
    """Bind a socket that the API worker serves. Raises: ConfigError."""
    try:
        return socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            backlog=HTTP_BACKLOG,
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"{key}: cannot listen on {address}: {reason}") from error


def _addresses(
    bound: BoundAddresses, http: socket.socket, manager: socket.socket | None
) -> dict[str, str]:
    """Return the bound addresses by kind, as people write them."""
    listening = {
        kind: str(Address("", *address))
        for kind in ("tcp", "ws", "wss")
        if (address := getattr(bound, kind)) is not None
    }
    for kind, sock in (("http", http), ("manager", manager)):
        if sock is not None:
            host, port, *_ = sock.getsockname()
            listening[kind] = str(Address("", host, port))
    return listening
