"""How much one connection may send and how many connections one address may hold."""

from __future__ import annotations

BURST_S = 1.0
"""A bucket holds this many seconds' worth of its rate."""


class TokenBucket:
    """Tokens for frames and bytes of one connection; both may go below zero and are then owed.

    A rate of 0 is unlimited.
    """

    __slots__ = ("_byte_rate", "_bytes", "_frame_rate", "_frames", "_updated")

    def __init__(self, frame_rate: float, byte_rate: float, now: float) -> None:
        self._frame_rate = frame_rate
        self._byte_rate = byte_rate
        self._frames = frame_rate * BURST_S
        self._bytes = byte_rate * BURST_S
        self._updated = now

    def take(self, frames: int, size: int, now: float) -> float:
        """Take what was read and return the seconds to wait until nothing is owed, 0 if none."""
        elapsed = now - self._updated
        self._updated = now
        wait = 0.0
        rate = self._frame_rate
        if rate:
            self._frames = min(self._frames + elapsed * rate, rate * BURST_S) - frames
            wait = -self._frames / rate
        rate = self._byte_rate
        if rate:
            self._bytes = min(self._bytes + elapsed * rate, rate * BURST_S) - size
            wait = max(wait, -self._bytes / rate)
        return max(wait, 0.0)


class AddressCounts:
    """Connections per source address. `limit` 0 counts nothing."""

    __slots__ = ("_counts", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}

    def take(self, host: str) -> bool:
        """Count one more connection of `host`; False, and not counted, if it has its share."""
        if not self._limit:
            return True
        count = self._counts.get(host, 0)
        if count >= self._limit:
            return False
        self._counts[host] = count + 1
        return True

    def release(self, host: str) -> None:
        if not self._limit:
            return
        count = self._counts[host] - 1
        if count:
            self._counts[host] = count
        else:
            del self._counts[host]
