"""A token bucket for frames that cost the host and carry nothing."""

from __future__ import annotations


class Budget:
    """Holds at most `burst` tokens and gains `per_s` a second; `take` is false when empty."""

    __slots__ = ("_burst", "_last", "_per_s", "_tokens")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._tokens = float(burst)
        self._last: float | None = None

    def refill(self, now: float) -> None:
        if self._last is not None:
            gained = (now - self._last) * self._per_s
            self._tokens = min(self._burst, self._tokens + max(0.0, gained))
        self._last = now

    def earn(self, tokens: float) -> None:
        self._tokens = min(self._burst, self._tokens + tokens)

    def take(self, tokens: float = 1.0) -> bool:
        self._tokens -= tokens
        return self._tokens >= 0

    @property
    def empty(self) -> bool:
        return self._tokens < 0
