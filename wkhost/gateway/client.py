"""One connection as data, and the rule of its outbox. No system call is made here.

The outbox, per connection
--------------------------
Frames wait as `frames` (encoded by the protocol, not yet by WebSocket and TLS) and, once a socket
took only a part, as `wire` (ready for the socket). Both together are `pending` bytes, at most
`outbox_bytes` beside the socket's own buffer; one frame that is larger than that by itself is
taken when nothing else waits. When a frame does not fit, what waits is first offered to the socket.
If it still does not fit the client is a slow consumer, and:

- frames that may be lost (RECV with no_persist, EVENT) are dropped. They may fill only half of the
  outbox, so that they never use up the room of the others;
- any other frame (stored RECV, SENDACK, PONG, CONNACK, SUBACK) closes the connection silently. A
  stored RECV is never skipped: the client comes back and reads what it missed from history.
"""

from __future__ import annotations

import socket

from wkhost.gateway.layers import Layer
from wkhost.gateway.limits import TokenBucket
from wkhost.gateway.settings import ConnectionInfo, GatewaySettings
from wkhost.protocol.connection import ServerConnection

CONNECTING = 0
"""No CONNECT yet; the connect timeout runs."""
ASKED = 1
"""CONNECT is with the kernel, or waits to be handed over."""
OPEN = 2
LEAVING = 3
"""Only what is queued still goes out; whatever comes in is thrown away."""
CLOSED = 4


class Client:
    """One connection. Times are `time.monotonic` seconds, 0.0 means never."""

    __slots__ = (
        "active",
        "blocked",
        "bucket",
        "close_at",
        "conn",
        "conn_id",
        "dirty",
        "dropped",
        "fd",
        "frames",
        "host",
        "in_bytes",
        "in_msgs",
        "in_packets",
        "known",
        "layer",
        "opened",
        "out_bytes",
        "out_msgs",
        "out_packets",
        "peer_host",
        "peer_port",
        "pending",
        "read_bytes",
        "resume_at",
        "slot",
        "sock",
        "state",
        "text",
        "transport",
        "wire",
    )

    def __init__(
        self,
        conn_id: int,
        sock: socket.socket,
        conn: ServerConnection,
        layer: Layer | None,
        transport: str,
        peer: tuple[str, int],
        now: float,
    ) -> None:
        self.conn_id = conn_id
        self.sock = sock
        self.fd = sock.fileno()
        self.conn = conn
        self.layer = layer
        self.transport = transport
        self.host, self.peer_port = peer
        self.peer_host = self.host
        """Where it really comes from; `host` stays the address that the limit counts."""
        self.state = CONNECTING
        self.known = False
        """The kernel was told of it and must be told when it is gone."""
        self.text = False
        self.frames: list[bytes] = _NOTHING
        self.wire: bytes | memoryview = b""
        self.pending = 0
        self.dirty = False
        self.blocked = False
        self.opened = now
        self.active = now
        self.close_at = 0.0
        self.resume_at = 0.0
        """When its socket will be read again; 0.0 while it is being read."""
        self.slot = 0
        self.read_bytes = 0
        self.bucket: TokenBucket | None = None
        self.in_packets = self.in_msgs = self.in_bytes = 0
        self.out_packets = self.out_msgs = self.out_bytes = 0
        self.dropped = 0

    def deadline(self, settings: GatewaySettings) -> float:
        """The earliest moment at which something may have to be done for this connection."""
        if self.state == CONNECTING:
            due = self.opened + settings.connect_timeout_s
        elif self.resume_at:
            due = self.resume_at
        else:
            due = self.active + settings.idle_timeout_s
        if self.close_at and self.close_at < due:
            return self.close_at
        return due

    def take_output(self) -> bytes | memoryview:
        """Everything that waits, encoded for the socket; it is the caller's from now on.

        Raises RemoteProtocolError if the layer can send no more.
        """
        frames = self.frames
        wire = self.wire
        if not frames:
            return wire
        self.frames = _NOTHING
        if self.layer is not None:
            data = self.layer.wrap(frames, text=self.text)
        elif len(frames) == 1:
            data = frames[0]
        else:
            data = b"".join(frames)
        return b"".join((wire, data)) if wire else data

    def info(self, now: float) -> ConnectionInfo:
        return ConnectionInfo(
            conn_id=self.conn_id,
            transport=self.transport,
            peer_host=self.peer_host,
            peer_port=self.peer_port,
            accepted=self.state == OPEN,
            jsonrpc=self.text,
            version=self.conn.version,
            age_s=now - self.opened,
            idle_s=now - self.active,
            pending_bytes=self.pending,
            in_packets=self.in_packets,
            in_msgs=self.in_msgs,
            in_bytes=self.in_bytes,
            out_packets=self.out_packets,
            out_msgs=self.out_msgs,
            out_bytes=self.out_bytes,
            dropped=self.dropped,
        )

    def __repr__(self) -> str:
        state = ("connecting", "asked", "open", "leaving", "closed")[self.state]
        peer = f"{self.peer_host}:{self.peer_port}"
        return f"<Client {self.conn_id} {self.transport} {peer} {state} {self.pending} B pending>"


_NOTHING: list[bytes] = []
"""Shared by all idle connections; replaced, never appended to."""
