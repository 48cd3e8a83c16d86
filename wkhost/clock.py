"""Time and message ids.

A message id is a 63-bit snowflake: milliseconds since `EPOCH_MS` << 22 | node << 12 | step. It is
the greater of the clock's first id and the last id's successor; so a clock that stands or steps
back never repeats an id.

Theory of operation, restarts. The ceiling is a durable promise in milliseconds since 1970: no id
of that millisecond or a later one was given out. The owner persists a ceiling 5 s ahead, and only
then may ids go up to it; after a restart ids begin at the old ceiling. `next` never blocks and
never writes: the owner's stage looks at `needs_ceiling` once a batch, carries `reserve()` to the
store with what it writes anyway, and calls `raised` when it is durable. A clock that is past the
ceiling (an idle or suspended machine, a step forward) is not followed until the ceiling is: ids
go on by one, of which millions are left. If the ceiling is reached all the same, because the
store takes nothing, `next` raises StoreBusyError, and the message is refused like any other the
store cannot take. Source: wire protocol, section 4.6.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wkhost.errors import StoreBusyError

EPOCH_MS = 1288834974657
MAX_NODE_ID = 1023
CEILING_AHEAD_MS = 5000
"""How far ahead of the clock the ceiling is persisted."""
_MAX_MS = EPOCH_MS + (1 << 41) - 1
_CARRY = (1 << 22) - (1 << 12)
"""From the number behind a millisecond's last step to the next millisecond's first id."""


class Clock:
    """The wall clock. Tests give another one with the same methods; durations are trio's time."""

    wall_ns: Callable[[], int] = staticmethod(time.time_ns)
    """Nanoseconds since 1970; may step in both directions."""

    def wall_s(self) -> float:
        """Seconds since 1970; may step in both directions."""
        return time.time()

    def wall_ms(self) -> int:
        """Milliseconds since 1970; may step in both directions."""
        return time.time_ns() // 1_000_000


class MessageIds:
    """Gives out message ids that never repeat.

    `ceiling_ms` is the last persisted one, 0 in a new data directory; `wall_ns` reads the wall
    clock in nanoseconds since 1970. Before the first id, persist `reserve()` and call `raised`.
    """

    __slots__ = ("_ceiling", "_ceiling_ms", "_last", "_wall_ns", "_zero")

    def __init__(self, node_id: int, ceiling_ms: int, wall_ns: Callable[[], int]) -> None:
        if not 0 <= node_id <= MAX_NODE_ID:
            raise ValueError(f"node_id is {node_id}, expected 0 to {MAX_NODE_ID}")
        if not 0 <= ceiling_ms <= _MAX_MS:
            raise ValueError(f"ceiling_ms is {ceiling_ms}, expected 0 to {_MAX_MS}")
        self._wall_ns = wall_ns
        self._zero = (EPOCH_MS << 22) - (node_id << 12)
        self._ceiling_ms = max(ceiling_ms, EPOCH_MS + 1)
        self._ceiling = (self._ceiling_ms << 22) - self._zero
        # The last id that the run before may have given out: the last step below its ceiling.
        self._last = ((self._ceiling_ms - 1) << 22) - self._zero + 0xFFF

    def __repr__(self) -> str:
        return f"<MessageIds last={self._last} ceiling_ms={self._ceiling_ms}>"

    def next(self) -> int:
        """Return a new id.

        Raises StoreBusyError when the persisted ceiling is reached; a later call may succeed.
        """
        number = self._last + 1
        now = (self._wall_ns() // 1_000_000 << 22) - self._zero
        if number < now < self._ceiling:
            self._last = now
            return now
        if not number & 0xFFF:
            number += _CARRY
        if number >= self._ceiling:
            raise StoreBusyError("message ids are used up until the store takes a new ceiling")
        self._last = number
        return number

    def _reached_ms(self) -> int:
        """The later of the clock and the last id's time."""
        return max((self._last >> 22) + EPOCH_MS, self._wall_ns() // 1_000_000)

    def needs_ceiling(self) -> bool:
        """True when less than half of the reserve is left ahead of the clock or the last id.

        It stays true until `raised`, so ask for one new ceiling at a time.
        """
        return self._reached_ms() + CEILING_AHEAD_MS // 2 >= self._ceiling_ms

    def reserve(self) -> int:
        """Return the ceiling to make durable next: 5 s ahead of the clock and of the last id."""
        return min(max(self._reached_ms() + CEILING_AHEAD_MS, self._ceiling_ms), _MAX_MS)

    def raised(self, ceiling_ms: int) -> None:
        """Ids below `ceiling_ms` may be given out: it is durable. It never goes down."""
        if ceiling_ms > self._ceiling_ms:
            self._ceiling_ms = ceiling_ms
            self._ceiling = (ceiling_ms << 22) - self._zero
            # An idle server's next id comes from here, not from the time of its last message.
            now_ms = min(self._wall_ns() // 1_000_000, ceiling_ms - 1)
            self._last = max(self._last, ((now_ms - 1) << 22) - self._zero + 0xFFF)
