"""Latencies: kept as plain seconds, told as percentiles in milliseconds."""

from __future__ import annotations

from array import array

import msgspec


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds; zeros where nothing was measured."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


def percentiles(seconds: array[float]) -> Percentiles:
    """Return the percentiles of latencies given in seconds."""
    if not seconds:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0)
    ordered = sorted(seconds)
    last = len(ordered) - 1

    def at(share: float) -> float:
        return round(ordered[round(last * share)] * 1000, 3)

    return Percentiles(len(ordered), at(0.5), at(0.9), at(0.99), at(1.0))


def ratio(amount: float, by: float, digits: int = 2) -> float:
    """Return `amount / by`, 0 where there is nothing to divide by."""
    return round(amount / by, digits) if by else 0.0
