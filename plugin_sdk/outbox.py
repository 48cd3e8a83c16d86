"""Answers that wait for the next frame, cut to what one frame may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plugin_sdk.wire.v1 import plugin_pb2

MAX_FRAME_BYTES = 256 * 1024
MAX_FRAME_CALLS = 1024
_CONTINUED_BYTES = 11
"""At most: a 64-bit number as a varint, and its share of the list's header."""
_FRAME_ROOM = MAX_FRAME_BYTES - 64


def _nobody() -> None:
    """Answers are taken without being told of."""


class Outbox:
    """`continued` takes the ids of calls that go on (append, then `wake`); `add` takes verdicts.

    `ready` is called when there may be something to take, or nothing more will come.
    """

    def __init__(self) -> None:
        self.ready: Callable[[], None] = _nobody
        self.continued: list[int] = []
        self._verdicts: list[plugin_pb2.Verdict] = []
        self._verdict_bytes = 0
        self.closed = False

    def go_on(self, call_id: int) -> None:
        self.continued.append(call_id)
        self.wake()

    def add(self, verdict: plugin_pb2.Verdict) -> None:
        self._verdicts.append(verdict)
        self._verdict_bytes += verdict.ByteSize() + 8
        self.wake()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        self.ready()

    def take(self) -> plugin_pb2.PluginFrame | None:
        """Take what one frame holds; None when there is nothing."""
        continued, verdicts = self.continued, self._verdicts
        if not continued and not verdicts:
            return None
        frame = plugin_pb2.PluginFrame()
        batch = frame.verdicts
        count = len(continued) + len(verdicts)
        size = len(continued) * _CONTINUED_BYTES + self._verdict_bytes
        if count <= MAX_FRAME_CALLS and size <= _FRAME_ROOM:
            batch.continued.extend(continued)
            batch.verdicts.extend(verdicts)
            continued.clear()
            verdicts.clear()
            self._verdict_bytes = 0
        else:
            self._take_part(batch)
        return frame

    def _take_part(self, batch: Any) -> None:
        """Fill one frame: ids first, then verdicts while they fit (one always does)."""
        first = self.continued[:MAX_FRAME_CALLS]
        del self.continued[:MAX_FRAME_CALLS]
        batch.continued.extend(first)
        room = _FRAME_ROOM - len(first) * _CONTINUED_BYTES
        slots = MAX_FRAME_CALLS - len(first)
        taken = 0
        for verdict in self._verdicts[:slots]:
            size = verdict.ByteSize() + 8
            if size > room and (taken or first):
                break
            room -= size
            self._verdict_bytes -= size
            taken += 1
        batch.verdicts.extend(self._verdicts[:taken])
        del self._verdicts[:taken]
