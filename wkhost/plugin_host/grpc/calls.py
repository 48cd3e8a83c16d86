"""The unary calls of one connection: one task starts and answers them, in slices of a turn.

A task per call would make all that wait for one fsync runnable in the same turn of the loop, and
64 answers hold it for longer than a message should wait. So answers are collected, and written in
slices of a millisecond with one `send` each. A handler that need not wait runs in the slice itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter

import trio

from wkhost.plugin_host.grpc.events import UnaryRequest
from wkhost.plugin_host.grpc.methods import CallInfo, Limits
from wkhost.plugin_host.grpc.status import GrpcError, StatusCode
from wkhost.plugin_host.pace import Pace

SLICE_S = 0.0005
"""How much of one turn handlers and answers of a connection may take; a call is never split."""
HELD_BACK_S = 0.01
"""Who calls too often waits at least so long, and then has several calls served: each time takes
turns of the loop and an fsync, for one call as for ten."""
_LARGE = 64 * 1024
"""Answers above this are not collected: the wire bounds what is held of them."""
_DEADLINE = GrpcError(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")


class UnaryCalls:
    """Serves what `add` brings until `run` is cancelled.

    `reply(stream_id, data)` and `failed(stream_id, error)` queue an answer, `flush` writes all.
    """

    def __init__(
        self,
        limits: Limits,
        reply: Callable[[int, bytes], None],
        failed: Callable[[int, Exception], None],
        flush: Callable[[], None],
    ) -> None:
        self._reply = reply
        self._failed = failed
        self._flush = flush
        self._max_running = limits.max_concurrent_calls
        self._pace = Pace(limits.calls_burst, limits.calls_per_s)
        self._due: float | None = None
        """When the first of `_waiting` may start, once the pace was asked."""
        self._waiting: dict[int, UnaryRequest] = {}
        self._running: dict[int, trio.CancelScope] = {}
        self._answers: deque[tuple[int, bytes | Exception]] = deque()
        self._wake = trio.Event()

    def add(self, request: UnaryRequest) -> None:
        self._waiting[request.stream_id] = request
        self._wake.set()

    def over(self, stream_id: int) -> None:
        """The peer no longer waits for this answer."""
        self._waiting.pop(stream_id, None)
        scope = self._running.get(stream_id)
        if scope is not None:
            scope.cancel()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                wait_until = self._slice(nursery)
                self._flush()
                if wait_until <= trio.current_time():
                    await trio.lowlevel.checkpoint()
                    continue
                self._wake = trio.Event()
                with trio.move_on_at(wait_until):
                    await self._wake.wait()

    def _slice(self, nursery: trio.Nursery) -> float:
        """Work for one slice; return when there is more to do if nothing happens before."""
        until = perf_counter() + SLICE_S
        while perf_counter() < until:
            if self._answers:
                self._answer(*self._answers.popleft())
            elif not self._waiting or len(self._running) >= self._max_running:
                return math.inf
            else:
                now = trio.current_time()
                if self._due is None:
                    wait_s = self._pace.take(now)
                    self._due = now + max(wait_s, HELD_BACK_S) if wait_s else now
                if self._due > now:
                    return self._due
                self._due = None
                self._start(self._waiting.pop(next(iter(self._waiting))), now, nursery)
        return 0.0

    def _answer(self, stream_id: int, answer: bytes | Exception) -> None:
        if isinstance(answer, bytes):
            self._reply(stream_id, answer)
        else:
            self._failed(stream_id, answer)

    def _start(self, request: UnaryRequest, now: float, nursery: trio.Nursery) -> None:
        stream_id, deadline = request.stream_id, request.deadline
        if deadline is not None and deadline <= now:
            self._failed(stream_id, _DEADLINE)
            return
        info = CallInfo(request.path, request.metadata, deadline)
        try:
            answer = request.method.handler(request.data, info)
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            self._failed(stream_id, error)
            return
        if isinstance(answer, bytes):
            self._reply(stream_id, answer)
            return
        scope = trio.CancelScope(deadline=math.inf if deadline is None else deadline)
        self._running[stream_id] = scope
        nursery.start_soon(self._wait_for, stream_id, answer, scope)

    async def _wait_for(
        self, stream_id: int, answer: Awaitable[bytes], scope: trio.CancelScope
    ) -> None:
        found: bytes | Exception = _DEADLINE
        try:
            with scope:
                found = await answer
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            found = error
        finally:
            del self._running[stream_id]
        # Where the peer cancelled, the wire does not know the call any more and ignores this.
        if isinstance(found, bytes) and len(found) > _LARGE:
            self._reply(stream_id, found)
        else:
            self._answers.append((stream_id, found))
        self._wake.set()
