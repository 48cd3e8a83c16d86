"""Fan-out: a durable message to the connections of its recipients.

Theory of operation. `deliver` serves a message at once when its recipients are few and nothing of
its channel waits. Otherwise it goes behind the earlier ones of its channel, and the fan-out task
works all waiting channels in turn, at most `SLICE` connections each, so a large group neither
stops the loop nor overtakes itself. Messages of one channel are pushed in the order they were
given, that is ascending message_seq.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from wkhost.addressing import halves, original_id, visitor_of
from wkhost.delivery.boundary import Outbox
from wkhost.delivery.members import Loading, MemberLists
from wkhost.delivery.presence import Pending, Presence, Session
from wkhost.delivery.views import view_for_others, view_for_sender
from wkhost.errors import StoreError
from wkhost.types import SYSTEM_UID, ChannelType, Flags, Message

SLICE = 128
"""Connections pushed to in one synchronous stretch (about 1.3 ms)."""
UIDS_PER_SLICE = 4096
"""Uids looked up in one stretch: most members of a large group are offline."""
RELOAD_DELAY_S = 0.1

_NO_PERSIST = int(Flags.NO_PERSIST)
_PERSON = int(ChannelType.PERSON)


class Delivery:
    """One message on its way out. `skip_conn_id` is the connection that sent it."""

    __slots__ = ("cursor", "message", "skip_conn_id", "uids")

    def __init__(self, message: Message, skip_conn_id: int, uids: Sequence[str] | Loading) -> None:
        self.message = message
        self.skip_conn_id = skip_conn_id
        self.uids = uids
        self.cursor = 0


class Fanout:
    """Owns what is waiting to be pushed, per channel.

    `delivered(n)` is told the payload bytes of messages that are completely pushed.
    """

    def __init__(
        self,
        outbox: Outbox,
        presence: Presence,
        members: MemberLists,
        clock: Callable[[], float],
        delivered: Callable[[int], None],
    ) -> None:
        self._outbox = outbox
        self._presence = presence
        self._members = members
        self._clock = clock
        self._delivered = delivered
        self._waiting: dict[tuple[str, int], deque[Delivery]] = {}
        self._turn: deque[tuple[str, int]] = deque()
        self._wake = trio.Event()
        self.pushed = 0
        """Frames queued for connections since the start."""

    def deliver(
        self, m: Message, skip_conn_id: int, recipients: Sequence[str] | None = None
    ) -> int:
        """Push `m` now, or behind what waits for its channel. Returns the connections served."""
        channel = (m.channel_id, m.channel_type)
        if channel not in self._waiting:
            if m.channel_type == _PERSON and recipients is None:
                return self._push_person(m, skip_conn_id)
            uids = self._recipients(m) if recipients is None else recipients
            if not isinstance(uids, Loading) and len(uids) <= SLICE:
                self._delivered(len(m.payload))
                return self._push(m, skip_conn_id, uids)
            self._waiting[channel] = deque((Delivery(m, skip_conn_id, uids),))
            self._turn.append(channel)
            self._wake.set()
            return 0
        uids = self._recipients(m) if recipients is None else recipients
        self._waiting[channel].append(Delivery(m, skip_conn_id, uids))
        return 0

    def _push_person(self, m: Message, skip_conn_id: int) -> int:
        self._delivered(len(m.payload))
        first, second = halves(original_id(m.channel_id))
        return self._push(m, skip_conn_id, (first, second) if first != second else (first,))

    def _recipients(self, m: Message) -> Sequence[str] | Loading:
        return recipients_of(m, self._members)

    def _push(self, m: Message, skip_conn_id: int, uids: Sequence[str]) -> int:
        """Push to every session of `uids` but the sending one."""
        by_uid = self._presence.by_uid
        others: list[Session] = []
        own: list[Session] = []
        from_uid = m.from_uid
        for uid in uids:
            sessions = by_uid.get(uid)
            if sessions is None or uid == SYSTEM_UID:
                continue
            if uid == from_uid:
                own += [s for s in sessions if s.conn_id != skip_conn_id]
            else:
                others += sessions
        entry = None
        if not m.flags & _NO_PERSIST:
            entry = Pending(m.channel_id, m.channel_type, m.message_seq, self._clock())
        if others:
            self._outbox.recv(view_for_others(m), [s.conn_id for s in others])
        if own:
            self._outbox.recv(view_for_sender(m), [s.conn_id for s in own])
            others += own
        if entry is not None:
            message_id = m.message_id
            for session in others:
                session.await_recvack(message_id, entry)
        self.pushed += len(others)
        return len(others)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work what waits, channel by channel, a slice each."""
        task_status.started()
        while True:
            if not self._turn:
                self._wake = trio.Event()
                await self._wake.wait()
            channel = self._turn.popleft()
            queue = self._waiting[channel]
            try:
                finished = self._slice(queue[0])
            except StoreError:
                # The store is reopening: the message is durable, its members can be read later.
                await trio.sleep(RELOAD_DELAY_S)
                finished = False
            if finished:
                self._delivered(len(queue.popleft().message.payload))
            if queue:
                self._turn.append(channel)
            else:
                del self._waiting[channel]
            self._outbox.flush()
            await trio.lowlevel.checkpoint()

    def _slice(self, delivery: Delivery) -> bool:
        """Serve one slice of a delivery. True when it is complete."""
        uids = delivery.uids
        if isinstance(uids, Loading):
            if not uids.done:
                self._members.load(uids)
                return False
            uids = delivery.uids = _with_extra(delivery.message, uids.uids)
        sessions = self._presence.by_uid
        start = position = delivery.cursor
        end = min(len(uids), start + UIDS_PER_SLICE)
        connections = 0
        while position < end and connections < SLICE:
            connections += len(sessions.get(uids[position], ()))
            position += 1
        delivery.cursor = position
        self._push(delivery.message, delivery.skip_conn_id, uids[start:position])
        return position == len(uids)

    def statistics(self) -> dict[str, int]:
        return {
            "pushed": self.pushed,
            "waiting_channels": len(self._waiting),
            "waiting_messages": sum(len(queue) for queue in self._waiting.values()),
        }


def recipients_of(m: Message, members: MemberLists) -> Sequence[str] | Loading:
    """Return the uids a message goes to, the sender included. Raises: StoreError.

    Source: wire protocol, the table of channel types.
    """
    channel_id = original_id(m.channel_id) if m.channel_type != ChannelType.TEMP else m.channel_id
    if m.channel_type in (ChannelType.PERSON, ChannelType.AGENT):
        first, second = halves(channel_id)
        return (first, second) if first != second else (first,)
    uids = members.subscribers(channel_id, m.channel_type)
    return uids if isinstance(uids, Loading) else _with_extra(m, uids)


def _with_extra(m: Message, uids: Sequence[str]) -> Sequence[str]:
    """Add the visitor, who belongs to the channel without being on its list."""
    visitor = visitor_of(original_id(m.channel_id), m.channel_type)
    return uids if not visitor or visitor in uids else [*uids, visitor]
