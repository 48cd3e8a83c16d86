"""Spreading work over time: calls, bytes of a tunnel, bytes and lines of output."""

from __future__ import annotations

_ROUNDING = 1e-6


class Pace:
    """At most `per_s` a second after a burst of `burst`. `now` is seconds of any fixed origin."""

    __slots__ = ("_burst_s", "_next", "_per_s")

    def __init__(self, burst: float, per_s: float) -> None:
        self._per_s = per_s
        self._burst_s = burst / per_s
        self._next = 0.0

    def take(self, now: float, amount: float = 1.0) -> float:
        """Count work, whatever it is; return how many seconds it has to wait."""
        self._next = max(self._next, now) + amount / self._per_s
        return max(0.0, self._next - self._burst_s - now)

    def left(self, now: float) -> int:
        """Return how much would not have to wait now."""
        left_s = self._burst_s - max(0.0, self._next - now)
        return max(0, int(left_s * self._per_s + _ROUNDING))
