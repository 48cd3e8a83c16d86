"""One wheel for every deadline of every connection, so that none of them needs a task.

The wheel knows connection numbers only. A connection is filed under its earliest deadline; when
that comes up the owner looks at the connection's real deadlines and files it again if none is due.
Activity therefore costs one assignment and never touches the wheel.
"""

from __future__ import annotations

from heapq import heappop, heappush

TICK_S = 0.1
"""Width of a slot: deadlines fire up to this much late, never early."""


class TimerWheel:
    """Slots of connection numbers in order of time. Times are seconds of any steady clock."""

    __slots__ = ("_order", "_slots", "_tick_s")

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, list[int]] = {}
        self._order: list[int] = []

    def slot_of(self, deadline: float) -> int:
        """The first slot that comes up at or after `deadline`."""
        return int(deadline / self._tick_s) + 1

    def file(self, conn_id: int, slot: int) -> None:
        """Let `conn_id` come up with `slot`; a number may be filed under several."""
        ids = self._slots.get(slot)
        if ids is None:
            self._slots[slot] = [conn_id]
            heappush(self._order, slot)
        else:
            ids.append(conn_id)

    def due(self, now: float, limit: int) -> list[tuple[int, int]]:
        """Take at most `limit` entries whose slot has come, as (slot, conn_id), earliest first."""
        current = int(now / self._tick_s)
        taken: list[tuple[int, int]] = []
        order = self._order
        while order and order[0] <= current and len(taken) < limit:
            slot = order[0]
            ids = self._slots[slot]
            room = limit - len(taken)
            if len(ids) <= room:
                taken += [(slot, conn_id) for conn_id in ids]
                del self._slots[slot]
                heappop(order)
            else:
                taken += [(slot, conn_id) for conn_id in ids[-room:]]
                del ids[-room:]
        return taken

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))
