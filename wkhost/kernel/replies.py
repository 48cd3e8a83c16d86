"""From the fate of a message to what its senders are told: SENDACKs, and callbacks of other doors.

The only place where fates become answers. SENDACKs gather during a turn and leave together.
"""

from __future__ import annotations

from collections import Counter

from wkhost.delivery.boundary import Outbox
from wkhost.kernel.inflight import Inflight, Waiter
from wkhost.protocol.packets import Send, Sendack


class Replies:
    """Tells everybody who waits for a message. `reasons` counts the answers by code."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._acks: list[tuple[int, Sendack]] = []
        self.reasons: Counter[int] = Counter()

    def tell(self, m: Inflight, reason: int, text: str) -> None:
        """Answer the sender of `m` and everybody whose repeat joined it."""
        message = m.message
        message_id = message.message_id
        seq = message.message_seq
        self.reasons[reason] += 1
        if m.conn_id:
            self._acks.append(
                (m.conn_id, Sendack(m.client_seq, message_id, seq, reason, message.flags, text))
            )
        elif m.done is not None:
            m.done(message_id, seq, reason, text)
        if m.joined is not None:
            for waiter in m.joined:
                self._tell_waiter(waiter, message_id, seq, reason, text)
            m.joined = None

    def _tell_waiter(
        self, waiter: Waiter, message_id: int, seq: int, reason: int, text: str
    ) -> None:
        if waiter.conn_id:
            ack = Sendack(waiter.client_seq, message_id, seq, reason, waiter.flags, text)
            self._acks.append((waiter.conn_id, ack))
        elif waiter.done is not None:
            waiter.done(message_id, seq, reason, text)

    def turn_down(self, conn_id: int, send: Send, message_id: int, reason: int, text: str) -> None:
        """Answer a SEND that never became a message."""
        self.reasons[reason] += 1
        self._acks.append(
            (conn_id, Sendack(send.client_seq, message_id, 0, reason, send.flags, text))
        )

    def queue(self) -> None:
        """Hand the answers of this turn to the gateway, which writes them at its next flush."""
        if self._acks:
            acks, self._acks = self._acks, []
            self._outbox.sendacks(acks)

    def flush(self) -> None:
        """Let the answers and pushes of this turn out."""
        self.queue()
        self._outbox.flush()
