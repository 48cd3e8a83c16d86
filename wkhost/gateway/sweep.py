"""The gateway: one task that sweeps all sockets. What is written where: see table.py, outbox.py.

Theory of operation
-------------------
One epoll set holds every socket, the listeners and a wake-up call. The task sleeps until the set
has something, then makes one sweep:

1. take the packets that accepted logins had sent behind their CONNECT,
2. for each ready socket: write if it was full, read once, feed layer and protocol,
3. hand everything to the kernel as one batch each: logins, packets, connections gone,
4. write every connection that has output.

Invariants: packets of one connection reach the kernel in the order they came, none before its login
was accepted, none after it was reported gone. PING is answered here. A sweep is bounded in time:
what it does not get to stays ready and comes in the next, behind those that it did not get to
before. How much is read from a socket adapts to how long its bytes take (a kilobyte of tiny
packets costs as much as a megabyte of one payload).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from itertools import islice
from time import monotonic

import structlog
import trio

from wkhost.delivery.boundary import ConnectRequest, Ingress
from wkhost.errors import ReasonCode, Refused, RemoteProtocolError
from wkhost.gateway.accept import Acceptor
from wkhost.gateway.client import ASKED, CLOSED, LEAVING, OPEN, Client
from wkhost.gateway.layers import Layer
from wkhost.gateway.limits import TokenBucket
from wkhost.gateway.listeners import load_certificate
from wkhost.gateway.outbox import GatewayOutbox
from wkhost.gateway.settings import (
    BoundAddresses,
    ConnectionInfo,
    GatewaySettings,
    GatewayStatistics,
)
from wkhost.gateway.table import ConnectionTable
from wkhost.gateway.timers import TICK_S
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import (
    Connect,
    Disconnect,
    Packet,
    Ping,
    Recvack,
    Send,
    Sub,
    Suback,
)

log = structlog.get_logger(__name__)

SWEEP_EVENTS = 256
SWEEP_S = 0.001
"""Reading stops after this; the kernel's part and the writes come on top."""
MAX_READ_BYTES = 64 * 1024
FIRST_READ_BYTES = 4 * 1024
MIN_READ_BYTES = 256
SLOW_READ_S = 0.0004
"""A read that took longer to digest halves the connection's next one."""
HANDSHAKES = 16
"""Logins given to the kernel, and TLS or WebSocket handshake steps made, in one sweep."""
_EPOLLIN = select.EPOLLIN
_EPOLLOUT = select.EPOLLOUT
_BROKEN = select.EPOLLHUP | select.EPOLLERR


class Gateway(GatewayOutbox):
    """Sockets on one side, `Ingress` (called) and `Outbox` (implemented) on the other.

    `wall_clock_ms` gives milliseconds since the epoch, for time_diff in CONNACK.
    Raises ConfigError if the WSS certificate cannot be used.
    """

    def __init__(self, settings: GatewaySettings, wall_clock_ms: Callable[[], int]) -> None:
        context = load_certificate(settings) if settings.wss is not None else None
        table = ConnectionTable(settings)
        super().__init__(table, wall_clock_ms)
        self._settings = settings
        self._ingress: Ingress  # set by run
        self._acceptor = Acceptor(table, context)
        self._ready: list[tuple[int, int]] = []
        self._asking: deque[tuple[Client, Connect]] = deque()
        self._batch: list[tuple[int, Send | Recvack]] = []
        self._handshakes = 0
        self._drained: trio.Event | None = None
        self._limited = bool(settings.rate_frames_per_s or settings.rate_bytes_per_s)

    # Life

    async def run(
        self,
        ingress: Ingress,
        *,
        task_status: trio.TaskStatus[BoundAddresses] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve for `ingress` until cancelled; started with the addresses once connections are
        taken.

        On the way out every connection is closed silently. Raises ConfigError if an address
        cannot be bound.
        """
        self._ingress = ingress
        try:
            addresses = self._acceptor.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                task_status.started(addresses)
                await self._keep_sweeping()
        finally:
            self._acceptor.close()
            self._table.release()

    async def _keep_sweeping(self) -> None:
        epoll_fd = self._table.epoll.fileno()
        while True:
            if self._ready:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(epoll_fd)
            self._sweep()

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._acceptor.resume(monotonic())
            while self._table.expire(monotonic()):
                await trio.lowlevel.checkpoint()

    def reload_certificate(self) -> None:
        """Read the WSS certificate again, for connections to come. Raises ConfigError and keeps
        the old one if the new one cannot be used."""
        if self._settings.wss is not None:
            self._acceptor.context = load_certificate(self._settings)

    def quiesce(self) -> None:
        """Take no more connections and read no more from those that are there.

        What the kernel still queues goes out.
        """
        self._acceptor.close()
        table = self._table
        table.reading = False
        for client in list(table.by_id.values()):
            table.watch(client)

    async def drain(self) -> None:
        """Write all outboxes, then close every connection silently; the caller sets the limit.

        Cancellation: connections are closed in any case, what is unwritten is lost.
        """
        self.quiesce()
        if not self._table.by_id:
            return
        self._drained = trio.Event()
        self._table.wake()
        try:
            await self._drained.wait()
        finally:
            for client in list(self._table.by_id.values()):
                self._table.close(client)

    # One sweep

    def _sweep(self) -> None:
        table = self._table
        ready = self._ready or table.epoll.poll(0, SWEEP_EVENTS)
        self._ready = []
        self._handshakes = 0
        if self._accepted:
            self._take_held()
        by_fd = table.by_fd
        now = monotonic()
        deadline = now + SWEEP_S
        for i, (fd, mask) in enumerate(ready):
            client = by_fd.get(fd)
            if client is None:
                if not table.is_wake(fd):
                    self._acceptor.accept(fd, now)
                    now = monotonic()
            else:
                if mask & _EPOLLOUT and client.blocked:
                    table.write(client)
                if mask & ~_EPOLLOUT and client.state != CLOSED:
                    self._read(client, mask, now)
                now = monotonic()
            if now > deadline:
                self._ready = ready[i + 1 :]
                break
        self._hand_over()
        table.flush()
        table.statistics.sweeps += 1
        if self._drained is not None and not table.dirty and not table.blocked:
            self._drained.set()

    def _hand_over(self) -> None:
        """Give the kernel what was collected: logins, packets, connections gone."""
        ingress = self._ingress
        asking = self._asking
        if asking:
            requests: list[ConnectRequest] = []
            while asking and len(requests) < HANDSHAKES:
                client, connect = asking.popleft()
                if client.state == ASKED:
                    client.known = True
                    requests.append(_request(client, connect))
            if asking:
                self._table.wake()
            if requests:
                ingress.connects(requests)
        if self._batch:
            batch, self._batch = self._batch, []
            ingress.packets(batch)
        if self._table.gone:
            gone, self._table.gone = self._table.gone, []
            ingress.closed(gone)

    def _take_held(self) -> None:
        accepted, self._accepted = self._accepted, []
        for client in accepted:
            if client.state == OPEN:
                self._digest(client, None)

    # One connection

    def _read(self, client: Client, mask: int, now: float) -> None:
        """Read once, digest it, and adapt how much to read the next time."""
        layer = client.layer
        if mask & _BROKEN and not mask & _EPOLLIN:
            self._table.close(client)
            return
        if not self._table.reading or client.resume_at:
            return  # an event from before reading was stopped
        if layer is not None and layer.handshaking:
            if self._handshakes >= HANDSHAKES:
                return  # still ready in the next sweep
            self._handshakes += 1
        size = client.read_bytes or FIRST_READ_BYTES
        try:
            data = client.sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._table.close(client)
            return
        client.active = now
        client.in_bytes += len(data)
        self._table.statistics.in_bytes += len(data)
        if client.state == LEAVING:
            return
        packets_before = client.in_packets
        self._digest(client, data)
        if self._limited and client.state != CLOSED:
            self._limit(client, client.in_packets - packets_before, len(data), now)
        if len(data) * 4 >= size:
            self._adapt(client, size, len(data) == size, monotonic() - now)

    @staticmethod
    def _adapt(client: Client, size: int, full: bool, took_s: float) -> None:
        if took_s > SLOW_READ_S:
            client.read_bytes = max(size >> 1, MIN_READ_BYTES)
        elif full and size < MAX_READ_BYTES and took_s < SLOW_READ_S / 4:
            client.read_bytes = size << 1

    def _digest(self, client: Client, data: bytes | None) -> None:
        """Feed what was read (None: what is held) and act on it. The border of one client: a
        fault of its, or of ours with it, closes it and nothing else."""
        conn = client.conn
        layer = client.layer
        try:
            if data is None:
                packets = conn.held()
            elif layer is None:
                packets = conn.receive(data)
            else:
                plain = self._unwrap(client, layer, data)
                packets = conn.receive(plain) if plain else []
            self._dispatch(client, packets)
            if layer is not None and layer.ended:
                self._table.leave(client)
        except RemoteProtocolError as e:
            self._fault(client, e)
        except Refused as e:
            self._refuse(client, e.reason_code, e.text)
        except Exception:
            log.exception("client failed", conn_id=client.conn_id)
            self._table.statistics.client_failures += 1
            self._table.close(client)

    def _unwrap(self, client: Client, layer: Layer, data: bytes) -> bytes:
        handshaking = layer.handshaking
        try:
            return layer.receive(data)
        finally:
            if layer.reply:
                reply, layer.reply = layer.reply, b""
                self._table.queue_wire(client, reply)
            if handshaking and layer.forwarded is not None:
                client.peer_host, client.peer_port = layer.forwarded

    def _dispatch(self, client: Client, packets: list[Packet]) -> None:
        batch = self._batch
        conn_id = client.conn_id
        sends = 0
        for packet in packets:
            kind = type(packet)
            if kind is Send:
                sends += 1
                batch.append((conn_id, packet))  # type: ignore[arg-type] # kind is exact
            elif kind is Recvack:
                batch.append((conn_id, packet))  # type: ignore[arg-type] # kind is exact
            elif kind is Ping:
                self._table.queue(client, client.conn.pong())
            else:
                self._dispatch_rare(client, packet)
        client.in_packets += len(packets)
        client.in_msgs += sends
        statistics = self._table.statistics
        statistics.in_packets += len(packets)
        statistics.in_msgs += sends
        if client.text:
            for reply in client.conn.take_replies():
                self._table.queue(client, reply)

    def _dispatch_rare(self, client: Client, packet: Packet) -> None:
        if isinstance(packet, Connect):
            if client.conn.proxy_address is not None:
                client.peer_host, client.peer_port = client.conn.proxy_address
            client.state = ASKED
            self._table.file(client)  # the idle timeout may be the shorter one
            self._asking.append((client, packet))
        elif isinstance(packet, Sub):
            # Answered only so that clients do not wait. Source: wire protocol, packets, notes.
            answer = Suback(
                packet.sub_no,
                packet.channel_id,
                packet.channel_type,
                packet.action,
                ReasonCode.SUCCESS,
            )
            self._table.queue(client, client.conn.suback(answer))
        elif isinstance(packet, Disconnect):
            self._table.close_after(client, 0.0)

    def _fault(self, client: Client, error: RemoteProtocolError) -> None:
        """The peer broke the protocol: what it sent before still counts, then it is closed."""
        self._table.statistics.protocol_errors += 1
        log.debug("protocol error", conn_id=client.conn_id, error=str(error))
        self._dispatch(client, client.conn.take())
        if client.layer is not None and client.layer.ended:
            self._table.leave(client)  # an alert is on its way
        else:
            self._table.close_after(client, 0.0)

    def _limit(self, client: Client, packets: int, size: int, now: float) -> None:
        """Account what was read; stop reading for a while if it was more than allowed."""
        bucket = client.bucket
        if bucket is None:
            settings = self._settings
            bucket = client.bucket = TokenBucket(
                settings.rate_frames_per_s, settings.rate_bytes_per_s, now
            )
        wait_s = bucket.take(packets, size, now)
        if wait_s > 0:
            self._table.statistics.throttled += 1
            self._table.pause(client, now + wait_s)

    # What is going on

    def statistics(self) -> GatewayStatistics:
        """A copy of the counters."""
        return self._table.snapshot()

    def connections(self, offset: int = 0, limit: int = 1000) -> list[ConnectionInfo]:
        """A page of the connections, oldest first (about 2 µs each: page, do not ask for all)."""
        now = monotonic()
        clients = islice(self._table.by_id.values(), offset, offset + limit)
        return [client.info(now) for client in clients]


def _request(client: Client, connect: Connect) -> ConnectRequest:
    return ConnectRequest(
        conn_id=client.conn_id,
        connect=connect,
        peer_host=client.peer_host,
        peer_port=client.peer_port,
        transport=client.transport,
        jsonrpc=client.conn.form is Form.JSONRPC,
    )
