"""The load generator: one loop over an epoll set, sending, answering and checking.

Theory of operation. A turn takes all ready sockets; each is read once, everything in it is
digested, and whatever that calls for (RECVACKs, the next messages of a closed loop) goes out in one
write. In a closed loop every sender keeps `window` messages in flight; in an open loop messages are
due on a fixed grid and their latency counts from then, so that a slow server cannot hide its
queue. Every message is followed to its end: acknowledged once, delivered once to each recipient,
in order. What it costs to do so is this process's own and is told apart.
"""

from __future__ import annotations

import select
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from secrets import token_hex
from time import monotonic, process_time

import msgspec

from wkhost.bench.checks import Violations
from wkhost.bench.errors import BenchError
from wkhost.bench.peers import Fate, Peer
from wkhost.bench.timer import Timer
from wkhost.errors import ReasonCode, RemoteProtocolError
from wkhost.protocol.packets import Recv, Recvack, Send, Sendack

MAX_INFLIGHT = 256
"""Of one connection in an open loop; beyond it messages are due, but not sent."""
_READ_BYTES = 128 * 1024
_EVENTS = 256
_TURN_S = 0.05
_SUCCESS = int(ReasonCode.SUCCESS)


class Pace(msgspec.Struct, frozen=True):
    """Closed loop with `window` in flight per sender, or open loop with `rate` a second in all."""

    window: int = 1
    rate: float = 0.0


class Tally:
    """What was counted in the measured windows; latencies in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sent = 0
        self.acked = 0
        self.delivered = 0
        self.own_cpu_s = 0.0
        self.ack_s = array("d")
        self.delivery_s = array("d")
        # From here on counts of whole runs, warm-up and drain included.
        self.reasons: Counter[int] = Counter()
        self.due_but_unsent = 0
        self.violations = Violations()


class Load:
    """A load of `peers` on one server; `run` may be called again and adds to `tally`."""

    def __init__(self, peers: Sequence[Peer], payload: bytes, pace: Pace) -> None:
        self.tally = Tally()
        self._peers = peers
        self._senders = [peer for peer in peers if peer.receivers]
        self._payload = payload
        self._pace = pace
        self._run = token_hex(4)
        self._begin = self._end = float("inf")
        self._sending = False
        self._due = 0.0
        self._turn_of = 0
        self._epoll = select.epoll()
        self._by_fd = {peer.sock.fileno(): peer for peer in peers}
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._timer = Timer() if pace.rate else None
        if self._timer is not None:
            self._epoll.register(self._timer, select.EPOLLIN)

    def close(self) -> None:
        self._epoll.close()
        if self._timer is not None:
            self._timer.close()

    def run(
        self,
        *,
        warmup_s: float,
        duration_s: float,
        drain_s: float,
        measure: Callable[[], None],
        tell: Callable[[float], None],
    ) -> None:
        """Load the server for one window.

        `measure` is called where the window begins and where it ends. Raises BenchError when a
        connection is lost.
        """
        start = monotonic()
        self._sending = True
        self._due = start
        self._begin = self._end = float("inf")
        if not self._pace.rate:
            for peer in self._senders:
                self._refill(peer, start, [])
        self._turns_until(start + warmup_s, tell=None)
        own = process_time()
        self._begin = monotonic()
        self._end = self._begin + duration_s
        measure()
        self._turns_until(self._end, tell)
        measure()
        self.tally.seconds += monotonic() - self._begin
        self.tally.own_cpu_s += process_time() - own
        self._drain(drain_s)
        self._settle()

    def _turns_until(self, at: float, tell: Callable[[float], None] | None) -> None:
        rate = self._pace.rate
        while True:
            now = monotonic()
            if now >= at:
                return
            if tell is not None:
                tell((now - self._begin) / (self._end - self._begin))
            if rate:
                self._send_due(now)
                self._turn(min(at, self._due) - now)
            else:
                self._turn(min(at - now, _TURN_S))

    def _drain(self, drain_s: float) -> None:
        self._sending = False
        until = monotonic() + drain_s
        while any(peer.open for peer in self._senders) and (left := until - monotonic()) > 0:
            self._turn(min(left, _TURN_S))

    def _settle(self) -> None:
        """Whatever is still open at the end of the drain was lost; forget it."""
        violations = self.tally.violations
        for peer in self._senders:
            violations.missing_sendacks += peer.inflight
            violations.missing_deliveries += sum(
                fate.left for fate in peer.open.values() if fate.acked
            )
            peer.open.clear()
            peer.inflight = 0

    # One turn

    def _turn(self, wait_s: float) -> None:
        """Wait at most so long for sockets, and serve those that are ready."""
        by_fd = self._by_fd
        timer = self._timer
        if timer is not None:
            timer.set(wait_s)
        for fd, mask in self._epoll.poll(min(max(wait_s, 0.0), _TURN_S), _EVENTS):
            peer = by_fd.get(fd)
            if peer is None:
                continue  # the timer: what is due is sent before the next turn
            if mask & select.EPOLLOUT:
                self._write(peer, b"")
            if mask & ~select.EPOLLOUT:
                self._read(peer)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise BenchError(f"{peer.conn.uid}: the connection was lost: {error}") from error
        if not data:
            raise BenchError(f"{peer.conn.uid}: the server closed the connection")
        try:
            packets = peer.conn.receive(data)
        except RemoteProtocolError as error:
            raise BenchError(f"{peer.conn.uid}: the server broke the protocol: {error}") from error
        now = monotonic()
        out: list[bytes] = []
        for packet in packets:
            if type(packet) is Recv:
                self._received(peer, packet, now)
                out.append(
                    peer.conn.recvack(Recvack(packet.message_id, packet.message_seq, packet.flags))
                )
            elif type(packet) is Sendack:
                self._acked(peer, packet, now)
            else:
                raise BenchError(f"{peer.conn.uid}: the server sent {type(packet).__name__}")
        if peer.receivers and self._sending and not self._pace.rate:
            self._refill(peer, now, out)
        elif out:
            self._write(peer, b"".join(out))

    def _write(self, peer: Peer, data: bytes) -> None:
        was_full = bool(peer.unsent)
        if was_full:
            data = peer.unsent + data
        try:
            taken = peer.sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise BenchError(f"{peer.conn.uid}: the connection was lost: {error}") from error
        peer.unsent = data[taken:]
        if bool(peer.unsent) != was_full:
            mask = select.EPOLLIN | (select.EPOLLOUT if peer.unsent else 0)
            self._epoll.modify(peer.sock, mask)

    # Sending

    def _refill(self, peer: Peer, now: float, out: list[bytes]) -> None:
        """Fill the peer's window; writes what is in `out` too."""
        while peer.inflight < self._pace.window:
            out.append(self._message(peer, now))
        if out:
            self._write(peer, b"".join(out))

    def _send_due(self, now: float) -> None:
        """Send what is due by now, from one sender after the other."""
        step = 1 / self._pace.rate
        senders = self._senders
        while self._due <= now:
            due, self._due = self._due, self._due + step
            peer = senders[self._turn_of]
            self._turn_of = (self._turn_of + 1) % len(senders)
            if peer.inflight < MAX_INFLIGHT:
                self._write(peer, self._message(peer, due))
            else:
                self.tally.due_but_unsent += 1

    def _message(self, peer: Peer, due: float) -> bytes:
        number = peer.number = peer.number + 1
        peer.inflight += 1
        peer.open[number] = Fate(due, peer.receivers)
        if self._begin <= due < self._end:
            self.tally.sent += 1
        return peer.conn.send(
            Send(
                number,
                f"{self._run}-{peer.index}-{number}",
                peer.channel_id,
                peer.channel_type,
                self._payload,
            )
        )

    # Following messages

    def _acked(self, peer: Peer, ack: Sendack, now: float) -> None:
        tally = self.tally
        fate = peer.open.get(ack.client_seq)
        if fate is None or fate.acked:
            tally.violations.unexpected_sendacks += 1
            return
        peer.inflight -= 1
        tally.reasons[ack.reason_code] += 1
        if self._begin <= now < self._end:
            tally.acked += 1
        if self._begin <= fate.due < self._end:
            tally.ack_s.append(now - fate.due)
        if ack.reason_code != _SUCCESS:
            tally.violations.unexpected_deliveries += peer.receivers - fate.left
            del peer.open[ack.client_seq]
            return
        fate.acked = True
        if not fate.agrees(ack.message_id, ack.message_seq):
            tally.violations.ids_disagree += 1
        if not fate.left:
            del peer.open[ack.client_seq]

    def _received(self, receiver: Peer, recv: Recv, now: float) -> None:
        tally = self.tally
        violations = tally.violations
        run, _, flow = recv.client_msg_no.partition("-")
        if run != self._run:
            violations.unexpected_deliveries += 1
            return
        index, _, digits = flow.partition("-")
        sender = self._peers[int(index)]
        number = int(digits)
        if not self._in_order(receiver, sender.index, number):
            return
        if recv.message_seq <= receiver.last_seq:
            violations.message_seq_not_ascending += 1
        receiver.last_seq = recv.message_seq
        if recv.payload != self._payload:
            violations.payload_changed += 1
        fate = sender.open.get(number)
        if fate is None or not fate.left:
            violations.unexpected_deliveries += 1
            return
        if self._begin <= now < self._end:
            tally.delivered += 1
        if self._begin <= fate.due < self._end:
            tally.delivery_s.append(now - fate.due)
        fate.left -= 1
        if not fate.agrees(recv.message_id, recv.message_seq):
            violations.ids_disagree += 1
        if not fate.left and fate.acked:
            del sender.open[number]

    def _in_order(self, receiver: Peer, sender: int, number: int) -> bool:
        last = receiver.last_number.get(sender, 0)
        if number > last:
            receiver.last_number[sender] = number
            return True
        if number == last:
            self.tally.violations.duplicate_deliveries += 1
        else:
            self.tally.violations.disordered_deliveries += 1
        return False
