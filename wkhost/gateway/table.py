"""The connections of one gateway: the epoll set, who is in it, queueing, writing, closing.

Owned by the gateway's one thread; every method is synchronous. What is read and what it means is
not here (see sweep.py), nor what the kernel asks for (see outbox.py).
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from time import monotonic

import msgspec

from wkhost.errors import RemoteProtocolError
from wkhost.gateway.client import CLOSED, CONNECTING, LEAVING, Client
from wkhost.gateway.limits import AddressCounts
from wkhost.gateway.settings import GatewaySettings, GatewayStatistics
from wkhost.gateway.timers import TimerWheel

FLUSH_SOCKETS = 128
"""Sockets written in one flush (5 to 8 µs each); the others follow in the next sweep."""
LINGER_S = 2.0
"""How long a connection that is leaving may take to read what it was sent."""
TIMER_BATCH = 256
"""Deadlines looked at in one stretch (1 µs each)."""
_EPOLLIN = select.EPOLLIN
_EPOLLOUT = select.EPOLLOUT


class ConnectionTable:
    """All connections, by number and by file descriptor."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.statistics = GatewayStatistics()
        self.epoll = select.epoll()
        self.by_id: dict[int, Client] = {}
        self.by_fd: dict[int, Client] = {}
        self.wheel = TimerWheel()
        self.addresses = AddressCounts(settings.max_connections_per_address)
        self.gone: list[int] = []
        """Connections the kernel knows and has yet to be told that they are gone."""
        self.dirty: deque[Client] = deque()
        self.blocked = 0
        self.paused = 0
        self.reading = True
        self._outbox_bytes = settings.outbox_bytes
        self._lossy_bytes = settings.outbox_bytes // 2
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self._wake_fd, _EPOLLIN)
        self._woken = False

    # The sweep's sleep

    def wake(self) -> None:
        """Let the sweep run again although no socket calls for it."""
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    def is_wake(self, fd: int) -> bool:
        """Whether `fd` is the wake-up call; takes it if so."""
        if fd != self._wake_fd:
            return False
        os.eventfd_read(self._wake_fd)
        self._woken = False
        return True

    # Coming and going

    def add(self, client: Client) -> None:
        self.by_id[client.conn_id] = client
        self.by_fd[client.fd] = client
        self.epoll.register(client.fd, _EPOLLIN)
        self.statistics.opened += 1
        self.file(client)

    def file(self, client: Client) -> None:
        """File the connection under its earliest deadline, unless it comes up by then anyway."""
        slot = self.wheel.slot_of(client.deadline(self.settings))
        if not client.slot or slot < client.slot:
            client.slot = slot
            self.wheel.file(client.conn_id, slot)

    def close(self, client: Client) -> None:
        """Close at once, without a word to the client."""
        if client.state == CLOSED:
            return
        client.state = CLOSED
        del self.by_id[client.conn_id]
        del self.by_fd[client.fd]
        self.epoll.unregister(client.fd)
        client.sock.close()
        self.addresses.release(client.host)
        self.statistics.closed += 1
        self.blocked -= client.blocked
        self.paused -= client.resume_at > 0
        client.layer = None
        client.frames = []
        client.wire = b""
        client.pending = 0
        if client.known:
            self.gone.append(client.conn_id)
            self.wake()

    def leave(self, client: Client) -> None:
        """Send what is queued, then end the stream and give the client time to read it.

        Closing at once would reset the connection if the client is still sending, and the last
        frame, the reason of it all, might never be seen.
        """
        if client.state >= LEAVING:
            return
        client.state = LEAVING
        client.close_at = monotonic() + LINGER_S
        self.file(client)
        self._mark(client)

    def close_after(self, client: Client, delay_s: float) -> None:
        """Close without a frame in `delay_s` seconds, or now, after one try to write."""
        if delay_s > 0:
            at = monotonic() + delay_s
            client.close_at = min(client.close_at, at) if client.close_at else at
            self.file(client)
            return
        if client.pending and not client.blocked:
            self.write(client)
        self.close(client)

    # Deadlines

    def expire(self, now: float) -> bool:
        """Look at a batch of the connections whose time has come; True if there may be more."""
        entries = self.wheel.due(now, TIMER_BATCH)
        for slot, conn_id in entries:
            client = self.by_id.get(conn_id)
            if client is None or client.slot != slot:
                continue  # closed meanwhile, or filed again under another slot
            client.slot = 0
            self._check_deadlines(client, now)
            if client.state != CLOSED:
                self.file(client)
        return len(entries) == TIMER_BATCH

    def _check_deadlines(self, client: Client, now: float) -> None:
        settings = self.settings
        if client.close_at and client.close_at <= now:
            self.close(client)
        elif client.state == CONNECTING:
            if client.opened + settings.connect_timeout_s <= now:
                self.statistics.connect_timeouts += 1
                self.close(client)
        elif client.resume_at:
            if client.resume_at <= now:
                self.resume(client, now)
        elif client.active + settings.idle_timeout_s <= now:
            self.statistics.idle_timeouts += 1
            self.close(client)

    # Output

    def queue(self, client: Client, frame: bytes, *, lossy: bool = False) -> bool:
        """Queue one frame by the rule in client.py; False if it was not taken."""
        size = len(frame)
        if client.pending + size > (self._lossy_bytes if lossy else self._outbox_bytes) and (
            not self._make_room(client, size, lossy)
        ):
            return False
        client.pending += size
        client.out_packets += 1
        client.out_bytes += size
        statistics = self.statistics
        statistics.out_packets += 1
        statistics.out_bytes += size
        if client.frames:
            client.frames.append(frame)
        else:
            client.frames = [frame]
            if not client.dirty:
                client.dirty = True
                self.dirty.append(client)
        return True

    def queue_wire(self, client: Client, data: bytes) -> None:
        """Queue bytes of the connection's own layers (handshake, WebSocket pong, close)."""
        if client.pending + len(data) > self._outbox_bytes and (
            not self._make_room(client, len(data), lossy=False)
        ):
            return
        client.wire = b"".join((client.wire, data)) if client.wire else data
        client.pending += len(data)
        self._mark(client)

    def _mark(self, client: Client) -> None:
        if not client.dirty:
            client.dirty = True
            self.dirty.append(client)

    def _make_room(self, client: Client, size: int, lossy: bool) -> bool:
        if not client.blocked:
            self.write(client)
        if client.state == CLOSED:
            return False
        limit = self._lossy_bytes if lossy else self._outbox_bytes
        if not client.pending or client.pending + size <= limit:
            return True
        if lossy:
            client.dropped += 1
            self.statistics.lossy_dropped += 1
        else:
            self.statistics.slow_consumers += 1
            self.close(client)
        return False

    def flush(self) -> None:
        """Write what is queued, one system call per connection, at most `FLUSH_SOCKETS` of them."""
        dirty = self.dirty
        for _ in range(min(len(dirty), FLUSH_SOCKETS)):
            client = dirty.popleft()
            client.dirty = False
            if not client.blocked and client.state != CLOSED:
                self.write(client)
        if dirty:
            self.wake()

    def write(self, client: Client) -> None:
        """Offer everything that waits to the socket once."""
        try:
            data = client.take_output()
            sent = client.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except (OSError, RemoteProtocolError):
            self.close(client)
            return
        if sent == len(data):
            client.wire = b""
            client.pending = 0
            if client.blocked:
                client.blocked = False
                self.blocked -= 1
                self.watch(client)
            if client.state == LEAVING:
                self._end_stream(client)
            return
        client.wire = memoryview(data)[sent:]
        client.pending = min(client.pending, len(client.wire))
        if not client.blocked:
            client.blocked = True
            self.blocked += 1
            self.watch(client)

    def _end_stream(self, client: Client) -> None:
        """Everything is written: say goodbye once, then wait for the client to close."""
        layer = client.layer
        if layer is not None:
            client.layer = None
            try:
                client.wire = layer.farewell()
            except RemoteProtocolError:
                self.close(client)
                return
            if client.wire:
                client.pending = len(client.wire)
                self.write(client)
                return
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(client)

    def watch(self, client: Client) -> None:
        """Tell epoll what this connection waits for now."""
        mask = _EPOLLIN if self.reading and not client.resume_at else 0
        if client.blocked:
            mask |= _EPOLLOUT
        self.epoll.modify(client.fd, mask)

    def pause(self, client: Client, until: float) -> None:
        """Do not read this connection's socket until then."""
        client.resume_at = until
        self.paused += 1
        self.watch(client)
        self.file(client)

    def resume(self, client: Client, now: float) -> None:
        client.resume_at = 0.0
        client.active = now
        self.paused -= 1
        self.watch(client)

    def snapshot(self) -> GatewayStatistics:
        """A copy of the counters, with the numbers of the moment."""
        return msgspec.structs.replace(
            self.statistics,
            connections=len(self.by_id),
            waiting_output=self.blocked,
            paused_reads=self.paused,
        )

    def release(self) -> None:
        """Close every connection and the epoll set."""
        for client in list(self.by_id.values()):
            self.close(client)
        self.dirty.clear()
        self._woken = True  # nobody listens any more
        self.epoll.close()
        os.close(self._wake_fd)
