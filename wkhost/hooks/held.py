"""Messages parked under the hold policy until their plugin is back."""

from __future__ import annotations

from bisect import insort
from collections import deque

from wkhost.hooks.chain import Step
from wkhost.hooks.passage import Passage

HELD_BYTES_MAX = 16 * 1024 * 1024
HELD_MESSAGES_MAX = 10_000
HOLD_POLL_S = 0.05
"""How often a parked message's plugin is looked at; recovery must release within 100 ms."""


class HeldQueue:
    """Messages parked for one plugin, in the order of parking, bounded in bytes and count."""

    __slots__ = ("bytes", "passages")

    def __init__(self) -> None:
        self.passages: deque[Passage] = deque()
        self.bytes = 0

    def has_room(self, passage: Passage) -> bool:
        return (
            len(self.passages) < HELD_MESSAGES_MAX
            and self.bytes + len(passage.message.payload) <= HELD_BYTES_MAX
        )

    def put(self, passage: Passage, now: float) -> None:
        """Park it; one that was released in vain goes back to its place."""
        if passage.held_since:
            insort(self.passages, passage, key=_held_since)
        else:
            passage.held_since = now
            self.passages.append(passage)
        self.bytes += len(passage.message.payload)

    def take(self) -> Passage:
        passage = self.passages.popleft()
        self.bytes -= len(passage.message.payload)
        return passage


def takes_calls(step: Step, now: float) -> bool:
    """Whether a parked message may try its plugin again, as a probe if need be."""
    if not step.target.ready:
        return False
    breaker = step.target.lines["send"].breaker
    return breaker.closed or breaker.is_due(now)


def _held_since(passage: Passage) -> float:
    return passage.held_since
