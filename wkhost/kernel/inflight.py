"""A message between admission and its answer, and the lanes that keep the order of sending."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from wkhost.hooks.lookup import LookupAnswer
from wkhost.hooks.passage import UNKNOWN, Passage
from wkhost.kernel.channels import ChannelState
from wkhost.types import Message

SentCallback = Callable[[int, int, int, str], None]
"""Called with (message_id, message_seq, reason_code, text) when a message's fate is known."""


class Unasked:
    """Type of `UNASKED`: a look-up that a message has not been through yet."""


UNASKED = Unasked()


class Progress(IntEnum):
    WAITING = 0
    """For a look-up or a verdict."""
    READY = 1
    """Decided, may be sequenced once it is its lane's head."""
    GONE = 2
    """Refused; its place in the lane is void."""


MESSAGE_BYTES = 512
"""What a message takes on its way besides its payload and names."""


def weight(m: Message) -> int:
    """Return the bytes that a message counts for while it is on its way."""
    return len(m.payload) + len(m.channel_id) + len(m.client_msg_no) + len(m.topic) + MESSAGE_BYTES


class Waiter:
    """Somebody who wants to know the fate of a message: a SEND (`conn_id`) or a callback."""

    __slots__ = ("client_seq", "conn_id", "done", "flags")

    def __init__(
        self, conn_id: int, client_seq: int, flags: int, done: SentCallback | None
    ) -> None:
        self.conn_id = conn_id
        self.client_seq = client_seq
        self.flags = flags
        self.done = done


class Inflight(Passage, eq=False):
    """One message, from admission until it is durable and answered, or refused.

    `conn_id` is the sending connection (0: another door), `done` the callback of another door.
    `joined` are repeats with the same client_msg_no that share its fate. `recipients` overrides
    the channel's members (sends to a list of uids). `size` is its weight at admission.
    `trusted` senders skip the checks of the sender.
    """

    channel: ChannelState = UNKNOWN
    conn_id: int = 0
    client_seq: int = 0
    done: SentCallback | None = None
    joined: list[Waiter] | None = None
    lane: Lane | None = None
    progress: Progress = Progress.WAITING
    recipients: list[str] | None = None
    size: int = 0
    channel_answer: LookupAnswer | Unasked = UNASKED
    user_answer: LookupAnswer | Unasked = UNASKED

    @property
    def trusted(self) -> bool:
        return self.conn_id == 0


class Lane:
    """Messages of one (door, sender, channel) that wait, in the order they were sent."""

    __slots__ = ("bytes", "key", "queue")

    def __init__(self, key: tuple[str, str, ChannelState]) -> None:
        self.key = key
        self.queue: deque[Inflight] = deque()
        self.bytes = 0


class Lanes:
    """All lanes in which something waits. A lane exists only while it is not empty.

    A message that needs nothing and finds no lane of its own never enters one.
    """

    def __init__(self, ready: Callable[[Inflight], None], max_lane_bytes: int) -> None:
        self._ready = ready
        self._max_lane_bytes = max_lane_bytes
        self._lanes: dict[tuple[str, str, ChannelState], Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def find(self, m: Inflight) -> Lane | None:
        """Return the lane in which earlier messages of the same sender wait, if any."""
        if not self._lanes:
            return None
        return self._lanes.get((m.origin.door, m.message.from_uid, m.channel))

    def has_room(self, lane: Lane | None, size: int) -> bool:
        return lane is None or lane.bytes + size <= self._max_lane_bytes

    def enter(self, m: Inflight, lane: Lane | None) -> None:
        """Put `m` behind the earlier ones of its lane."""
        if lane is None:
            key = (m.origin.door, m.message.from_uid, m.channel)
            lane = self._lanes[key] = Lane(key)
        m.lane = lane
        lane.queue.append(m)
        lane.bytes += m.size

    def settle(self, m: Inflight, progress: Progress) -> None:
        """`m` is decided: pass on everything of its lane that nothing earlier holds back."""
        m.progress = progress
        lane = m.lane
        if lane is None:
            if progress is Progress.READY:
                self._ready(m)
            return
        queue = lane.queue
        while queue and queue[0].progress is not Progress.WAITING:
            head = queue.popleft()
            lane.bytes -= head.size
            head.lane = None
            if head.progress is Progress.READY:
                self._ready(head)
        # By identity: an answer given above may have sent again and opened a new lane.
        if not queue and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
