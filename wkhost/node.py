"""The composition root: builds every part of one server, runs them, stops them in order.

Nesting order is stop order: the store is opened first and closed last; the doors (gateway, API
worker, link) open last and shut first. On SIGTERM or SIGINT the doors stop reading, what was
admitted is answered and delivered, connections are closed silently (so clients come back), and
the process ends with 0, all within `DRAIN_S`.
"""

from __future__ import annotations

import gc
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from wkhost.clock import Clock
from wkhost.config import Settings
from wkhost.config.values import Address
from wkhost.errors import ConfigError
from wkhost.gateway.settings import BoundAddresses, GatewaySettings
from wkhost.gateway.sweep import Gateway
from wkhost.hooks.specs import host_hooks
from wkhost.kernel.kernel import Kernel
from wkhost.kernel.settings import KernelSettings
from wkhost.link.runtime import LINK_SOCKET, open_runtime_dir
from wkhost.link.server import LinkServer
from wkhost.store.options import StoreOptions
from wkhost.store.store import Store, open_store

DRAIN_S = 10.0
"""From SIGTERM to the end of the process, at most."""
SWITCH_INTERVAL_S = 0.0005
"""How long the main thread may keep the GIL from the committer thread. At the default of 5 ms the
acknowledgement of an fsync came ten times later beside a busy loop."""

Ready = Callable[[dict[str, str]], None]
"""Told once where everything listens: tcp, ws, wss, http -> "host:port"."""

log = structlog.get_logger(__name__)


def serve(settings: Settings, *, plugins: list[str] | None, ready: Ready) -> int:
    """Run a server until SIGTERM or SIGINT; return the exit code.

    `plugins` is the set to start; None starts those enabled in the data directory. `ready` is
    called once everything listens.

    Raises: ConfigError, DataDirectoryError, StoreError when the server cannot start.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    node = Node(settings, plugins, ready)
    trio.run(node.run, strict_exception_groups=True)
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
        settings = self._settings
        settings.root_dir.mkdir(parents=True, exist_ok=True)
        async with trio.open_nursery() as signals:
            await signals.start(self._watch_signals)
            async with self._open_store() as store:
                await self._serve(store)
            signals.cancel_scope.cancel()

    @asynccontextmanager
    async def _open_store(self) -> AsyncIterator[Store]:
        db = self._settings.db
        store = await open_store(
            self._settings.data_path,
            options=StoreOptions(
                mem_table_bytes=db.mem_table_bytes,
                block_cache_bytes=db.block_cache_bytes,
                write_buffer_bytes=db.write_buffer_bytes,
                max_open_files=db.max_open_files,
            ),
        )
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + DRAIN_S):
                await store.close()

    async def _serve(self, store: Store) -> None:
        settings = self._settings
        gateway = self._gateway = Gateway(gateway_settings(settings), self._clock.wall_ms)
        kernel = Kernel(
            settings=kernel_settings(settings),
            store=store,
            outbox=gateway,
            clock=self._clock,
            node_id=settings.cluster.node_id,
            events=host_hooks(),
        )
        runtime_dir = open_runtime_dir(settings.data_path)
        link = LinkServer(
            runtime_dir / LINK_SOCKET, kernel.service, api_token=secrets.token_hex(32)
        )
        async with trio.open_nursery() as inner:
            await inner.start(kernel.run)
            async with trio.open_nursery() as doors:
                await doors.start(link.run)
                bound = await doors.start(gateway.run, kernel)
                gc.freeze()
                self._ready(_addresses(bound))
                await self._stop.wait()
                await self._drain(kernel, gateway)
                doors.cancel_scope.cancel()
            inner.cancel_scope.cancel()

    async def _drain(self, kernel: Kernel, gateway: Gateway) -> None:
        log.info("stopping", at_most_s=DRAIN_S)
        with trio.move_on_after(DRAIN_S * 0.8) as scope:
            gateway.quiesce()
            await kernel.drain()
            await gateway.drain()
        if scope.cancelled_caught:
            log.warning("stopped_before_drained", statistics=kernel.statistics()["send"])

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


def gateway_settings(settings: Settings) -> GatewaySettings:
    """Return the gateway's part of the configuration."""
    limits = settings.limits
    wss = settings.wss_config
    return GatewaySettings(
        tcp=_host_port(settings.addr),
        ws=_host_port(settings.ws_addr),
        wss=_host_port(settings.wss_addr) if settings.wss_addr else None,
        wss_certificate=str(wss.cert_file or ""),
        wss_key=str(wss.key_file or ""),
        node_id=settings.cluster.node_id,
        encryption=not settings.disable_encryption,
        jsonrpc=not settings.disable_jsonrpc,
        connect_timeout_s=settings.connect_timeout_s,
        idle_timeout_s=settings.conn_idle_time_s,
        max_frame_bytes=limits.frame_bytes,
        outbox_bytes=limits.outbox_bytes,
        max_connections=limits.connections,
        max_connections_per_address=limits.connections_per_address,
        rate_frames_per_s=limits.frames_per_second,
        rate_bytes_per_s=limits.bytes_per_second,
    )


def kernel_settings(settings: Settings) -> KernelSettings:
    """Return the kernel's part of the configuration."""
    return KernelSettings(
        token_auth_on=settings.token_auth_on,
        manager_uid=settings.manager_uid,
        manager_token=settings.manager_token,
        whitelist_off_of_person=settings.whitelist_off_of_person,
        visitors_on=settings.customer_service.visitors_on,
        visitors_suffix=settings.customer_service.visitors_suffix,
        plugin_timeout_s=settings.plugin.timeout_s,
        max_payload_bytes=settings.limits.payload_bytes,
        max_inflight_bytes=settings.limits.inflight_bytes,
        max_inflight_bytes_per_connection=settings.limits.inflight_per_connection_bytes,
        max_lane_bytes=settings.limits.lane_bytes,
        retry_interval_s=settings.message_retry.interval_s,
        retry_scan_s=settings.message_retry.scan_interval_s,
        retry_max=settings.message_retry.max_count,
    )


def _host_port(address: Address) -> tuple[str, int]:
    return address.host, address.port


def _addresses(bound: BoundAddresses) -> dict[str, str]:
    """Return the bound addresses by kind, as people write them."""
    return {
        kind: str(Address("", *address))
        for kind in ("tcp", "ws", "wss")
        if (address := getattr(bound, kind)) is not None
    }
