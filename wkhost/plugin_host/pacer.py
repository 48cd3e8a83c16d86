"""Failures of many calls at once reach the dispatcher in portions, one per turn of the loop.

A plugin that dies may have thousands of calls open. Deciding all of them in one stretch would hold
up everybody, and the first decision would wait for the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer, Answers
from wkhost.hooks.verdict import Failure

PORTION = 128


class Pacer:
    """Implements `Answers` in front of another. The first portion goes on at once."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._waiting: deque[tuple[str, Sequence[tuple[int, Answer]]]] = deque()
        self._wake = trio.Event()
        self._running = False

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        if len(answers) <= PORTION or not isinstance(answers[0][1], Failure) or not self._running:
            self._answers.answered(plugin_no, answers)
            return
        for first in range(PORTION, len(answers), PORTION):
            self._waiting.append((plugin_no, answers[first : first + PORTION]))
        self._wake.set()
        self._answers.answered(plugin_no, answers[:PORTION])

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        self._answers.moved(lines, call_ids)

    async def run(self) -> None:
        """Hand on what waits until cancelled, and the rest then."""
        self._running = True
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                # Being woken was a turn already.
                while self._waiting:
                    self._answers.answered(*self._waiting.popleft())
                    await trio.lowlevel.checkpoint()
        finally:
            self._running = False
            while self._waiting:
                self._answers.answered(*self._waiting.popleft())
