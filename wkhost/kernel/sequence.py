"""The sequence stage: message_seq, log_pos and timestamp, one commit per batch, then the answers.

Theory of operation. `Committer` takes all that waits, at most `BATCH_MAX`, gives the numbers,
writes one batch and waits for the fsync; meanwhile the next batch gathers. Durable batches go to
`Completion`, which answers and delivers them in slices while the next fsync is on its way. A
message is acknowledged only after the fsync that covers it has returned.

A failed commit: the rows written since the last fsync are readable but not durable, and nothing
can be made durable until the store was reopened. So every message of this batch, and every one
that comes meanwhile, is answered with reason 15; given sequence numbers are forgotten; the store
is reopened and drops the rows above the last durable log_pos; then admission goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

import structlog
import trio

from wkhost.clock import MessageIds
from wkhost.errors import StoreBusyError, StoreError
from wkhost.kernel.channels import UNKNOWN_SEQ, ChannelTable
from wkhost.kernel.inflight import Inflight
from wkhost.store import mutations
from wkhost.store.engine import Row
from wkhost.store.statistics import Durations
from wkhost.store.store import Store
from wkhost.types import Flags, Message

BATCH_MAX = 256
"""Messages per commit: about 2 ms of work in one stretch."""
COMPLETION_SLICE = 64
"""Messages answered and delivered in one stretch."""
SMALL_BATCH = 8
"""Durable messages that are answered before the next commit begins."""
STALL_RETRY_S = 0.005
REOPEN_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

_NO_PERSIST = int(Flags.NO_PERSIST)

log = structlog.get_logger(__name__)


class RowsRequest:
    """Metadata rows that somebody waits for."""

    __slots__ = ("done", "error", "rows")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.done = trio.Event()
        self.error: StoreError | None = None


class Committer:
    """Makes messages and metadata durable, in the order they come.

    `durable(batch)` gets the messages of a commit in order; `failed(batch)` those that will never
    be stored. `stored` hears of the new log entries.
    """

    def __init__(
        self,
        store: Store,
        channels: ChannelTable,
        ids: MessageIds,
        *,
        wall_s: Callable[[], float],
        durable: Callable[[list[Inflight]], None],
        failed: Callable[[list[Inflight]], None],
        stored: Callable[[Sequence[Message]], None],
    ) -> None:
        self._store = store
        self._channels = channels
        self._ids = ids
        self._wall_s = wall_s
        self._durable = durable
        self._failed = failed
        self._stored = stored
        self._queue: deque[Inflight] = deque()
        self._requests: list[RowsRequest] = []
        self._wake = trio.Event()
        self.healthy = True
        """False from a failed commit until the store is open again."""
        self.commits = 0
        self.committed = 0
        self.batch_sizes = [0] * (BATCH_MAX.bit_length() + 1)
        """Commits with messages by size: 1, up to 2, up to 4, … up to `BATCH_MAX`, more."""
        self.durations = Durations()
        self.stalls = 0

    def put(self, m: Inflight) -> None:
        """Take a message that is ready to be stored."""
        queue = self._queue
        queue.append(m)
        if len(queue) == 1:
            self._wake.set()

    async def commit_rows(self, rows: Sequence[Row]) -> None:
        """Make metadata rows durable. Raises: StoreError (what became of them is unknown).

        Cancellation: the rows may still be written.
        """
        if not rows:
            return
        request = RowsRequest(rows)
        self._requests.append(request)
        self._wake.set()
        await request.done.wait()
        if request.error is not None:
            raise StoreError(str(request.error)) from request.error

    def raise_ceiling(self) -> None:
        """Message ids are used up: commit a new ceiling even if nothing else waits."""
        if not self._requests:
            self._requests.append(RowsRequest(()))
            self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reserve message ids, then commit for ever."""
        await self._commit([], [])
        task_status.started()
        while True:
            if not self._queue and not self._requests:
                self._wake = trio.Event()
                await self._wake.wait()
            queue = self._queue
            batch = [queue.popleft() for _ in range(min(len(queue), BATCH_MAX))]
            requests, self._requests = self._requests, []
            await self._commit(batch, requests)

    async def drain(self) -> None:
        """Return when everything given so far is committed or failed."""
        request = RowsRequest(())
        self._requests.append(request)
        self._wake.set()
        await request.done.wait()

    async def _commit(self, batch: list[Inflight], requests: list[RowsRequest]) -> None:
        started = perf_counter()
        ceiling = self._ids.reserve() if self._ids.needs_ceiling() else 0
        try:
            stored = await self._write(batch, requests, ceiling)
            if stored or ceiling or any(request.rows for request in requests):
                await self._store.sync()
        except StoreError as error:
            await self._fail(batch, requests, error)
            return
        if ceiling:
            self._ids.raised(ceiling)
        self.commits += 1
        self.committed += len(stored)
        self.durations.add(perf_counter() - started)
        if stored:
            self.batch_sizes[(len(stored) - 1).bit_length()] += 1
        for request in requests:
            request.done.set()
        if batch:
            self._durable(batch)
        if stored:
            self._stored(stored)

    async def _write(
        self, batch: list[Inflight], requests: list[RowsRequest], ceiling: int
    ) -> list[Message]:
        """Give the numbers and write one batch; waits while the store stalls."""
        rows: list[Row] = mutations.put_message_id_ceiling(ceiling) if ceiling else []
        for request in requests:
            rows += request.rows
        stored = self._number(batch)
        while True:
            try:
                if stored or rows:
                    self._store.append(stored, rows)
                return stored
            except StoreBusyError:
                self.stalls += 1
                await trio.sleep(STALL_RETRY_S)

    def _number(self, batch: list[Inflight]) -> list[Message]:
        now = int(self._wall_s())
        log_pos = self._store.last_log_pos()
        last_seq = self._store.last_seq
        stored: list[Message] = []
        for m in batch:
            message = m.message
            message.timestamp = now
            if message.flags & _NO_PERSIST:
                continue
            channel = m.channel
            if channel.last_seq == UNKNOWN_SEQ:
                channel.last_seq = last_seq(channel.channel_id, channel.channel_type)
            channel.last_seq += 1
            log_pos += 1
            message.message_seq = channel.last_seq
            message.log_pos = log_pos
            stored.append(message)
        return stored

    async def _fail(
        self, batch: list[Inflight], requests: list[RowsRequest], error: StoreError
    ) -> None:
        """Answer everything that waits with reason 15 and bring the store back."""
        log.error("commit_failed", error=str(error), messages=len(batch))
        self.healthy = False
        self._give_up(batch, requests, error)
        self._channels.forget_sequences()
        attempt = 0
        while True:
            try:
                await self._store.recover()
                break
            except StoreError as again:
                pause = REOPEN_BACKOFF_S[min(attempt, len(REOPEN_BACKOFF_S) - 1)]
                log.warning("reopen_failed", error=str(again), again_in_s=pause)
                attempt += 1
                self._give_up_waiting(error)
                await trio.sleep(pause)
        self._give_up_waiting(error)
        self._channels.forget_sequences()
        self._channels.permissions_changed()
        self.healthy = True
        log.info("store_reopened", attempts=attempt + 1)

    def _give_up_waiting(self, error: StoreError) -> None:
        batch = list(self._queue)
        self._queue.clear()
        requests, self._requests = self._requests, []
        self._give_up(batch, requests, error)

    def _give_up(
        self, batch: list[Inflight], requests: list[RowsRequest], error: StoreError
    ) -> None:
        for m in batch:
            m.message.message_seq = m.message.log_pos = 0
        if batch:
            self._failed(batch)
        for request in requests:
            request.error = error
            request.done.set()

    def statistics(self) -> dict[str, object]:
        return {
            "healthy": self.healthy,
            "queued": len(self._queue),
            "commits": self.commits,
            "committed": self.committed,
            "stalls": self.stalls,
            "batch_sizes": list(self.batch_sizes),
            "durations": list(self.durations.counts),
            "duration_s": self.durations.total_s,
        }


class Completion:
    """Answers and delivers what is durable, in slices, in commit order.

    `complete(m)` answers one message and returns how many connections it was pushed to;
    `slice_done()` lets the answers out.
    """

    def __init__(self, complete: Callable[[Inflight], int], slice_done: Callable[[], None]) -> None:
        self._complete = complete
        self._slice_done = slice_done
        self._queue: deque[Inflight] = deque()
        self._wake = trio.Event()

    def put(self, batch: list[Inflight]) -> None:
        """Take a durable batch. A small one is done at once: under low load the hand-over to the
        task would cost more than the work, and under high load batches are not small."""
        idle = not self._queue
        self._queue += batch
        if idle and len(batch) <= SMALL_BATCH:
            self._slice()
        if self._queue:
            self._wake.set()

    def _slice(self) -> None:
        queue = self._queue
        complete = self._complete
        work = 0
        while queue and work < COMPLETION_SLICE:
            work += 1 + complete(queue.popleft())
        self._slice_done()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what `put` has left, a slice per turn of the loop."""
        task_status.started()
        while True:
            if not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            self._slice()
            if self._queue:
                await trio.lowlevel.checkpoint()
