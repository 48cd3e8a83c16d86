"""What a gateway is told at construction, and what it says about itself.

No behaviour lives here.
"""

from __future__ import annotations

import msgspec

Address = tuple[str, int]
"""Host and port to listen on. An empty host is all IPv4 addresses; port 0 lets the OS choose."""


class GatewaySettings(msgspec.Struct, frozen=True):
    """Everything that shapes a gateway. Limits of 0 mean no limit unless stated otherwise."""

    tcp: Address | None = None
    ws: Address | None = None
    wss: Address | None = None
    wss_certificate: str = ""
    """PEM file with the certificate chain; needed when `wss` is set."""
    wss_key: str = ""
    """PEM file with the private key; empty means it is in the certificate file."""
    node_id: int = 1
    encryption: bool = True
    jsonrpc: bool = True
    connect_timeout_s: float = 30.0
    """From accept, TLS and WebSocket handshakes included, to a valid CONNECT."""
    idle_timeout_s: float = 180.0
    """Silence after which a connection is closed. Source: wire protocol, life of a connection."""
    max_frame_bytes: int = 1 << 20
    outbox_bytes: int = 64 * 1024
    """Encoded output one connection may have pending beside its socket's buffer; at least 1."""
    max_connections: int = 0
    max_connections_per_address: int = 0
    rate_frames_per_s: float = 0.0
    """Packets one connection may send; beyond it its socket is not read for a while."""
    rate_bytes_per_s: float = 0.0
    """Bytes one connection may send; beyond it its socket is not read for a while."""
    backlog: int = 4096


class BoundAddresses(msgspec.Struct, frozen=True):
    """Where a running gateway really listens."""

    tcp: Address | None = None
    ws: Address | None = None
    wss: Address | None = None


class ConnectionInfo(msgspec.Struct, frozen=True):
    """One connection at one moment. Times are seconds ago, sizes bytes before TLS and WebSocket
    on the way out, bytes on the socket on the way in."""

    conn_id: int
    transport: str
    peer_host: str
    peer_port: int
    accepted: bool
    jsonrpc: bool
    version: int
    age_s: float
    idle_s: float
    pending_bytes: int
    in_packets: int
    in_msgs: int
    in_bytes: int
    out_packets: int
    out_msgs: int
    out_bytes: int
    dropped: int


class GatewayStatistics(msgspec.Struct):
    """Counters since the start, except `connections`, `waiting_output` and `paused_reads`.

    `msgs` are SENDs in and RECVs out. `lossy_dropped` counts no_persist RECVs and EVENTs that a
    full outbox turned away; `slow_consumers` the connections closed because a frame that may not
    be lost did not fit; `client_failures` those closed because of a fault of ours.
    """

    connections: int = 0
    waiting_output: int = 0
    paused_reads: int = 0
    opened: int = 0
    closed: int = 0
    in_packets: int = 0
    in_msgs: int = 0
    in_bytes: int = 0
    out_packets: int = 0
    out_msgs: int = 0
    out_bytes: int = 0
    slow_consumers: int = 0
    lossy_dropped: int = 0
    unencodable: int = 0
    protocol_errors: int = 0
    client_failures: int = 0
    connect_timeouts: int = 0
    idle_timeouts: int = 0
    throttled: int = 0
    turned_away: int = 0
    accept_failures: int = 0
    sweeps: int = 0
