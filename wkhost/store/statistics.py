"""Counters of the store, for metrics."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the duration buckets, in seconds; one more bucket holds the rest."""


class Durations(msgspec.Struct):
    """How long something took: a count per bucket of `BUCKETS_S` (not cumulative), and the sum."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def copy(self) -> Durations:
        return Durations(self.counts.copy(), self.total_s)


class StoreStatistics(msgspec.Struct):
    """Totals since the store was opened."""

    messages: int = 0
    """Messages written."""
    rows: int = 0
    """Rows written, those of messages included."""
    reads: int = 0
    """Row look-ups and range reads."""
    busy: int = 0
    """Writes that met a write stall and are the caller's to retry."""
    failures: int = 0
    """Writes and syncs that the disk refused."""
    recoveries: int = 0
    """Times the store was reopened with success."""
    undone: int = 0
    """Messages taken back by those."""
    writes: Durations = msgspec.field(default_factory=Durations)
    """One per batch, whatever its size."""
    syncs: Durations = msgspec.field(default_factory=Durations)
    """One per caller of `Store.sync`, waiting included."""
