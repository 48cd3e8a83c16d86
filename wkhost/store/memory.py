"""The engine without a disk: for `--ephemeral` servers and for tests.

Durable here means: kept while the object lives, `reopen` included.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import trio

from wkhost.errors import StoreError
from wkhost.store.engine import MAX_SCAN_ROWS, Row

_FEW = 64
"""Up to so many new keys are inserted one by one; more are appended and the list sorted."""


class _Family:
    """Values by key, and the keys in order. New keys are put in order when a scan needs it."""

    __slots__ = ("_new", "_ordered", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._ordered: list[bytes] = []
        self._new: list[bytes] = []

    def ordered(self) -> list[bytes]:
        if self._new:
            if len(self._new) <= _FEW:
                for key in self._new:
                    insort(self._ordered, key)
            else:
                self._ordered += self._new
                self._ordered.sort()
            self._new = []
        return self._ordered

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            self._new.append(key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            ordered = self.ordered()
            del ordered[bisect_left(ordered, key)]

    def delete_range(self, start: bytes, end: bytes) -> None:
        ordered = self.ordered()
        low, high = bisect_left(ordered, start), bisect_left(ordered, end)
        for key in ordered[low:high]:
            del self.values[key]
        del ordered[low : max(low, high)]


class MemoryEngine:
    """`Engine` in dictionaries."""

    def __init__(self, families: Iterable[str]) -> None:
        self._families = {name: _Family() for name in families}
        self._open = True

    def _family(self, name: str) -> _Family:
        if not self._open:
            raise StoreError("the store is closed")
        return self._families[name]

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._family(family).values.get(key)

    def scan(
        self, family: str, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        rows = self._family(family)
        ordered, values = rows.ordered(), rows.values
        limit = min(limit, MAX_SCAN_ROWS)
        low, high = bisect_left(ordered, start), bisect_left(ordered, end)
        if reverse:
            chosen = ordered[max(low, high - limit) : high][::-1]
        else:
            chosen = ordered[low : min(high, low + limit)]
        return [(key, values[key]) for key in chosen]

    def write(self, rows: Sequence[Row]) -> None:
        for name, key, value in rows:
            family = self._family(name)
            if value is None:
                family.delete(key)
            elif isinstance(value, bytes):
                family.put(key, value)
            else:
                family.delete_range(key, value.end)

    async def sync(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._open:
            raise StoreError("the store is closed")

    async def reopen(self) -> None:
        await trio.lowlevel.checkpoint()
        self._open = True

    async def close(self) -> None:
        self._open = False
        await trio.lowlevel.checkpoint()
