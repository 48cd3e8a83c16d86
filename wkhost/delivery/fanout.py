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
_TWO_UIDS = (int(ChannelType.PERSON), int(ChannelType.AGENT))
_TEMP = int(ChannelType.TEMP)


class Delivery:
    """One message on its way out. `skip_conn_id` is the connection that sent it.

    `uids` up to `cursor` are done, but for `sessions`, the rest of the last uid's.
    """

    __slots__ = ("cursor", "message", "sessions", "size", "skip_conn_id", "uids")

    def __init__(
        self, message: Message, size: int, skip_conn_id: int, uids: Sequence[str] | Loading
    ) -> None:
        self.message = message
        self.size = size
        self.skip_conn_id = skip_conn_id
        self.uids = uids
        self.sessions: list[Session] = []
        self.cursor = 0


class Fanout:
    """Owns what is waiting to be pushed, per channel.

    `delivered(n)` is told the size of each message that is completely pushed.
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
        self, m: Message, size: int, skip_conn_id: int, recipients: Sequence[str] | None = None
    ) -> int:
        """Push `m` now, or behind what waits for its channel. Returns the connections served.

        `size` is what `delivered` is told once it is pushed to everybody.
        """
        uids = recipients_of(m, self._members) if recipients is None else recipients
        waiting = self._waiting.get((m.channel_id, m.channel_type)) if self._waiting else None
        if waiting is not None:
            waiting.append(Delivery(m, size, skip_conn_id, uids))
            return 0
        sessions: list[Session] = []
        cursor = 0
        if not isinstance(uids, Loading) and len(uids) <= SLICE:
            sessions = self._sessions(uids)
            if len(sessions) <= SLICE:
                self._delivered(size)
                return self._push(m, skip_conn_id, sessions)
            cursor = len(uids)
        delivery = Delivery(m, size, skip_conn_id, uids)
        delivery.sessions = sessions
        delivery.cursor = cursor
        channel = (m.channel_id, m.channel_type)
        self._waiting[channel] = deque((delivery,))
        self._turn.append(channel)
        self._wake.set()
        return 0

    def _sessions(self, uids: Sequence[str]) -> list[Session]:
        by_uid = self._presence.by_uid
        found: list[Session] = []
        for uid in uids:
            sessions = by_uid.get(uid)
            if sessions is not None and uid != SYSTEM_UID:
                found += sessions
        return found

    def _push(self, m: Message, skip_conn_id: int, sessions: Sequence[Session]) -> int:
        """Push to every one of `sessions` but the sending one."""
        others: list[Session] = []
        own: list[Session] = []
        from_uid = m.from_uid
        for session in sessions:
            if session.uid != from_uid:
                others.append(session)
            elif session.conn_id != skip_conn_id:
                own.append(session)
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
                self._delivered(queue.popleft().size)
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
            uids = delivery.uids = with_visitor(delivery.message, uids.uids)
        by_uid = self._presence.by_uid
        sessions = delivery.sessions
        position = delivery.cursor
        end = min(len(uids), position + UIDS_PER_SLICE)
        while position < end and len(sessions) < SLICE:
            uid = uids[position]
            position += 1
            online = by_uid.get(uid)
            if online is not None and uid != SYSTEM_UID:
                sessions += online
        delivery.cursor = position
        delivery.sessions = sessions[SLICE:]
        self._push(delivery.message, delivery.skip_conn_id, sessions[:SLICE])
        return position == len(uids) and not delivery.sessions

    def statistics(self) -> dict[str, int]:
        return {
            "pushed": self.pushed,
            "waiting_channels": len(self._waiting),
            "waiting_messages": sum(len(queue) for queue in self._waiting.values()),
        }


def recipients_of(m: Message, members: MemberLists) -> Sequence[str] | Loading:
    """Return the uids a message goes to, the sender included.

    Source: wire protocol, the table of channel types.
    """
    channel_id = original_id(m.channel_id) if m.channel_type != _TEMP else m.channel_id
    if m.channel_type in _TWO_UIDS:
        first, second = halves(channel_id)
        return (first, second) if first != second else (first,)
    uids = members.subscribers(channel_id, m.channel_type)
    return uids if isinstance(uids, Loading) else with_visitor(m, uids)


def with_visitor(m: Message, uids: Sequence[str]) -> Sequence[str]:
    """Add the visitor, who belongs to the channel without being on its list."""
    visitor = visitor_of(original_id(m.channel_id), m.channel_type)
    return uids if not visitor or visitor in uids else [*uids, visitor]
