"""How a measurement tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

Tell = Callable[[float, str], None]
"""Told the share done (0 to 1) and what is being done."""

_INTERVAL_S = 0.2


class Steps:
    """Divides one measurement into steps of equal length."""

    def __init__(self, count: int, tell: Tell) -> None:
        self._count = max(1, count)
        self._tell = tell
        self._done = 0
        self._text = ""
        self._next = 0.0

    def begin(self, text: str) -> None:
        """The next step begins."""
        self._text = text
        self._next = 0.0
        self.at(0.0)

    def at(self, share: float) -> None:
        """So much of this step is done; may be called often."""
        now = monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL_S
            self._tell((self._done + min(share, 1.0)) / self._count, self._text)

    def end(self) -> None:
        """This step is done."""
        self._done += 1
        self._tell(self._done / self._count, self._text)
