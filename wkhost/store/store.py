"""The store: group commit, durability and recovery over an `Engine`. Rows are made elsewhere.

Theory of operation. The kernel's commit stage calls `append` for a batch and then `sync`; when
`sync` returns, the batch is durable and `durable_log_pos` has risen to it. Reads of messages tell
only what is durable. After a failed write or sync the rows above `durable_log_pos` have an
unknown fate: the store takes no more writes until `recover` has reopened the engine and deleted
them, so that what was refused to its sender does not come back.

State: open -> (write or sync fails) failed -> recover() -> open; recover() may fail and be
called again. While it runs, and until it succeeds, reads and writes raise StoreBusyError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import trio

from wkhost.errors import DataDirectoryError, StoreBusyError, StoreError
from wkhost.store import keys, schema
from wkhost.store.engine import Engine, Row
from wkhost.store.lock import DirectoryLock
from wkhost.store.memory import MemoryEngine
from wkhost.store.messages import MessageReader, message_rows
from wkhost.store.metadata import MetadataReader
from wkhost.store.options import StoreOptions
from wkhost.store.reader import CLOSED, REOPENING
from wkhost.store.rocks import RocksEngine
from wkhost.store.statistics import StoreStatistics
from wkhost.types import Message

ENGINE_DIRECTORY = "rocks"
SHARE_WITHIN_S = 0.005


class _Sharers:
    """Those who wait for the next sync of somebody else. `error` and `given_up` tell its end."""

    __slots__ = ("ended", "error", "given_up")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: StoreError | None = None
        self.given_up = False


class Store(MessageReader, MetadataReader):
    """Messages and metadata, durable together. Get one from `open_store`."""

    def __init__(self, engine: Engine, lock: DirectoryLock | None = None) -> None:
        super().__init__(engine)
        self._lock = lock
        self._failed = False
        self._recovering = False
        self._closed = False
        self._generation = 0
        self._totals = StoreStatistics()
        self._sharers: _Sharers | None = None

    async def start(self) -> None:
        """Check the schema version and find the end of the log. Call once, before all else.

        Raises DataDirectoryError, StoreError.
        """
        await schema.prepare(self._engine)
        # Opening wrote what the write-ahead log held into synced tables.
        self._last_log_pos = self._durable_log_pos = self._newest_log_pos()

    def append(self, messages: Sequence[Message], rows: Sequence[Row] = ()) -> None:
        """Write `messages` and `rows` as one batch: after a crash all of it is there or nothing.

        `log_pos` of the messages goes on from `last_log_pos()` by one each (ValueError if not),
        `message_seq` is set, none is no_persist. Not durable before `sync`. A call holds the
        trio thread for about 7 us per message: give at most 256, and more in further calls.

        Raises StoreBusyError on a write stall or while reopening: nothing was written, the same
        call may be repeated. Raises StoreError when the disk refuses: call `recover`.
        """
        self._check_log_pos(messages)
        self.write([*message_rows(messages), *rows])
        if messages:
            self._last_log_pos = messages[-1].log_pos
            self._totals.messages += len(messages)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of `mutations` as one batch. Errors as for `append`.

        If the following sync fails, each may be there or not after `recover`.
        """
        self._check_writable()
        started = perf_counter()
        totals = self._totals
        try:
            self._engine.write(rows)
        except StoreBusyError:
            totals.busy += 1
            raise
        except StoreError:
            self._fail()
            raise
        totals.rows += len(rows)
        totals.writes.add(perf_counter() - started)

    async def sync(self) -> None:
        """Return when everything written before the call is durable.

        Raises StoreError if that could not be done; then nothing above `durable_log_pos` may
        be acknowledged, and `recover` must be called. StoreBusyError while reopening.

        Cancellation: what was written stays written; `durable_log_pos` does not rise.
        """
        sharers, self._sharers = self._sharers, None
        if sharers is None:
            await self._sync()
            return
        sharers.given_up = True
        try:
            await self._sync()
            sharers.given_up = False
        except StoreError as error:
            sharers.error, sharers.given_up = error, False
            raise
        finally:
            sharers.ended.set()

    async def sync_soon(self) -> None:
        """As `sync`, for what users need not wait for: shares the next sync of somebody else, if
        one comes within `SHARE_WITHIN_S`. On a busy server that costs no fsync at all.
        """
        while True:
            sharers = self._sharers
            if sharers is None:
                sharers = self._sharers = _Sharers()
            with trio.move_on_after(SHARE_WITHIN_S):
                await sharers.ended.wait()
            if sharers is self._sharers:
                await self.sync()
                return
            await sharers.ended.wait()
            if sharers.error is not None:
                raise StoreError(str(sharers.error)) from sharers.error
            if not sharers.given_up:
                return

    async def _sync(self) -> None:
        self._check_writable()
        started = perf_counter()
        target, generation = self._last_log_pos, self._generation
        try:
            await self._engine.sync()
        except StoreError:
            if generation == self._generation:
                self._fail()
            raise
        if generation != self._generation:
            raise StoreError("an earlier write failed; what was not durable then is taken back")
        if target > self._durable_log_pos:
            self._durable_log_pos = target
        self._totals.syncs.add(perf_counter() - started)

    @property
    def failed(self) -> bool:
        """Whether a write or sync failed and `recover` has not succeeded since."""
        return self._failed

    async def recover(self) -> None:
        """Reopen the engine and delete every message above `durable_log_pos`.

        Raises StoreError if the disk still refuses (call again, with back-off),
        StoreBusyError if another call is at it, DataDirectoryError if durable messages are gone.

        Cancellation: the store stays blocked; call again.
        """
        if self._recovering:
            raise StoreBusyError("the store is reopening already")
        self._check_open()
        self._recovering = True
        self._failed = True
        self._generation += 1
        self._block(*REOPENING)
        try:
            await self._engine.reopen()
            undone = await self._undo()
            await self._engine.sync()
        finally:
            self._recovering = False
        self._check_open()
        self._failed = False
        self._unblock()
        self._totals.recoveries += 1
        self._totals.undone += undone

    async def close(self) -> None:
        """Close the engine and let others have the directory; a second call does nothing."""
        self._closed = True
        self._block(*CLOSED)
        await self._engine.close()
        if self._lock is not None:
            self._lock.release()

    def statistics(self) -> StoreStatistics:
        """Return a copy of the counters."""
        totals = self._totals
        return StoreStatistics(
            messages=totals.messages,
            rows=totals.rows,
            reads=self.reads,
            busy=totals.busy,
            failures=totals.failures,
            recoveries=totals.recoveries,
            undone=totals.undone,
            writes=totals.writes.copy(),
            syncs=totals.syncs.copy(),
        )

    def _check_open(self) -> None:
        if self._closed:
            error, text = CLOSED
            raise error(text)

    def _check_writable(self) -> None:
        if self._blocked is not None:
            raise self._blocked(self._blocked_text)
        if self._failed:
            raise StoreError("an earlier write failed; the store must recover first")

    def _fail(self) -> None:
        self._failed = True
        self._generation += 1
        self._totals.failures += 1

    async def _undo(self) -> int:
        """Delete the messages above `durable_log_pos`; return how many."""
        engine = self._engine
        before = self._newest_log_pos()
        while rows := self._rows_to_undo(self._durable_log_pos):
            engine.write(rows)
            await trio.lowlevel.checkpoint()
        newest = self._newest_log_pos()
        if newest != self._durable_log_pos:
            raise DataDirectoryError(
                f"messages up to log_pos {self._durable_log_pos} were durable, but the data "
                f"directory ends at {newest}"
            )
        self._last_log_pos = newest
        return max(0, before - newest)


async def open_store(path: Path | None, *, options: StoreOptions | None = None) -> Store:
    """Open the store in the directory `path`, making it if needed; None keeps it in memory.

    Must be called inside a trio run, which the store then belongs to.

    Raises DataDirectoryError if the directory is in use, damaged or from a newer version,
    StoreError if the disk refuses.
    """
    if path is None:
        store = Store(MemoryEngine(keys.FAMILIES))
        await store.start()
        return store
    lock = DirectoryLock(path)
    lock.acquire()
    engine = RocksEngine(
        path / ENGINE_DIRECTORY,
        keys.FAMILIES,
        options=options or StoreOptions(),
        scanned=keys.SCANNED_FAMILIES,
    )
    store = Store(engine, lock)
    try:
        await engine.open()
        await store.start()
    except BaseException:
        await store.close()
        raise
    return store
