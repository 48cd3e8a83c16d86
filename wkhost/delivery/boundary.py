"""The boundary between gateways and the kernel: batches in, frames with connection ids out.

The kernel knows a connection by its number only and never sees a socket, so a gateway can move to
a process of its own without a change here. All methods are synchronous and cheap per item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from wkhost.protocol.packets import Connect, Event, Recv, Recvack, Send, Sendack


class ConnectRequest(msgspec.Struct, gc=False):
    """A CONNECT that waits for its verdict. `transport` is "tcp", "ws" or "wss"."""

    conn_id: int
    connect: Connect
    peer_host: str
    peer_port: int
    transport: str
    jsonrpc: bool


class Ingress(Protocol):
    """What a gateway tells the kernel. Implemented by the kernel."""

    def connects(self, batch: Sequence[ConnectRequest]) -> None:
        """Take logins. Each is answered by `Outbox.accept`, `Outbox.refuse` or `Outbox.close`."""

    def packets(self, batch: Sequence[tuple[int, Send | Recvack]]) -> None:
        """Take packets of accepted connections as (conn_id, packet), in the order they came."""

    def closed(self, conn_ids: Sequence[int]) -> None:
        """Connections are gone, whoever closed them; nothing more will come from them."""


class Outbox(Protocol):
    """What the kernel tells a gateway. Implemented by the gateway.

    Unknown connection numbers are ignored: a connection may be gone by the time a frame for it
    is ready. Frames of one connection leave in the order of the calls.
    """

    def accept(self, conn_id: int) -> None:
        """Login granted: the gateway agrees keys and queues CONNACK(success) with its version,
        time_diff and node_id. RECV may follow at once."""

    def refuse(self, conn_id: int, reason_code: int, text: str = "") -> None:
        """Login refused for good: CONNACK with the code (JSON-RPC: an error), then close."""

    def sendacks(self, batch: Sequence[tuple[int, Sendack]]) -> None:
        """Queue the answers of SENDs."""

    def recv(self, recv: Recv, conn_ids: Sequence[int]) -> None:
        """Queue one message view for each connection, encrypted for each."""

    def event(self, event: Event, conn_ids: Sequence[int]) -> None:
        """Queue a server event for those connections whose protocol version has events."""

    def disconnect(self, conn_id: int, reason_code: int, text: str, close_after_s: float) -> None:
        """Send DISCONNECT (final for clients: kicks only) and close after `close_after_s`."""

    def close(self, conn_id: int, after_s: float = 0.0) -> None:
        """Close without a frame; clients come back."""

    def flush(self) -> None:
        """Write what is queued, one system call per connection. Called after each batch."""
