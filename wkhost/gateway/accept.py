"""Taking connections: the listeners, who is turned away, what to do without descriptors."""

from __future__ import annotations

import select
import socket
import ssl

import structlog

from wkhost.gateway.client import Client
from wkhost.gateway.layers import Layer, TlsLayer, WebSocketLayer
from wkhost.gateway.listeners import (
    OUT_OF_RESOURCES,
    Listener,
    bound_addresses,
    open_listeners,
)
from wkhost.gateway.settings import BoundAddresses
from wkhost.gateway.table import ConnectionTable
from wkhost.protocol.connection import ServerConnection

log = structlog.get_logger(__name__)

ACCEPTS = 64
"""Connections taken from one listener in one sweep (15 µs each)."""
PAUSE_S = 0.5
"""How long nothing is accepted when the process or the machine has no descriptors left."""


class Acceptor:
    """Owns the listeners. `context` is the TLS context of WSS connections to come."""

    def __init__(self, table: ConnectionTable, context: ssl.SSLContext | None) -> None:
        self.context = context
        self._table = table
        self._listeners: dict[int, Listener] = {}
        self._last_conn_id = 0
        self._paused_until = 0.0

    def open(self) -> BoundAddresses:
        """Listen. Raises ConfigError if an address cannot be bound."""
        listeners = open_listeners(self._table.settings)
        self._listeners = {listener.sock.fileno(): listener for listener in listeners}
        for fd in self._listeners:
            self._table.epoll.register(fd, select.EPOLLIN)
        return bound_addresses(listeners)

    def close(self) -> None:
        """Stop listening; may be called again."""
        for fd, listener in self._listeners.items():
            if not self._paused_until:
                self._table.epoll.unregister(fd)
            listener.sock.close()
        self._listeners = {}

    def accept(self, fd: int, now: float) -> None:
        """Take what waits at the listener `fd`; ignored if it is none (any more)."""
        listener = self._listeners.get(fd)
        if listener is None:
            return
        for _ in range(ACCEPTS):
            try:
                sock, peer = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as e:
                self._table.statistics.accept_failures += 1
                if e.errno in OUT_OF_RESOURCES:
                    self._pause(now, e)
                    return
                continue  # that one connection died in the queue
            self._admit(listener.transport, sock, (peer[0], peer[1]), now)

    def _pause(self, now: float, error: OSError) -> None:
        """Nothing can be accepted: stop asking for a while instead of spinning."""
        if self._paused_until:
            return
        self._paused_until = now + PAUSE_S
        for fd in self._listeners:
            self._table.epoll.unregister(fd)
        log.warning("no connections accepted for now", error=str(error), pause_s=PAUSE_S)

    def resume(self, now: float) -> None:
        """Accept again if a pause is over."""
        if not self._paused_until or now < self._paused_until:
            return
        self._paused_until = 0.0
        for fd in self._listeners:
            self._table.epoll.register(fd, select.EPOLLIN)

    def _admit(
        self, transport: str, sock: socket.socket, peer: tuple[str, int], now: float
    ) -> None:
        table = self._table
        settings = table.settings
        if (
            settings.max_connections and len(table.by_id) >= settings.max_connections
        ) or not table.addresses.take(peer[0]):
            table.statistics.turned_away += 1
            sock.close()
            return
        sock.setblocking(False)
        self._last_conn_id += 1
        conn = ServerConnection(
            encryption=settings.encryption,
            jsonrpc_allowed=settings.jsonrpc,
            node_id=settings.node_id,
            max_frame_bytes=settings.max_frame_bytes,
            proxy_allowed=transport == "tcp",
        )
        layer = self._layer(transport)
        table.add(Client(self._last_conn_id, sock, conn, layer, transport, peer, now))

    def _layer(self, transport: str) -> Layer | None:
        if transport == "tcp":
            return None
        # A batch of frames may share one message, so the message may be longer than a frame.
        inner = WebSocketLayer(self._table.settings.max_frame_bytes + 64 * 1024)
        if transport == "ws":
            return inner
        assert self.context is not None
        return TlsLayer(self.context, inner)
