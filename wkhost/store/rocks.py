"""The engine on disk: RocksDB through rocksdict, with group commit. wkhost's only importer of it.

Theory of operation. `get`, `scan` and `write` run on the trio thread: they hold the interpreter
lock anyway and take microseconds. `write` appends to the write-ahead log without fsync. `sync`
makes the log durable in the worker thread, which lets go of the interpreter lock during fsync.
Callers of `sync` that come while an fsync runs share the next one, so the batches grow with the
load and no timer is needed. Opening and closing run in the worker thread too.

Facts of rocksdict 0.3.29 that shape this file: in raw mode only the upper bound of `ReadOptions`
can be set (the lower one sets the upper); the database stays open, its LOCK held, until every
family object is closed and every family handle and iterator is gone, those in the frames of a
kept traceback included; an iterator that ends may have failed, which `status` tells. After a
failed fsync or a full disk every later write fails until the database is opened anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio
from rocksdict import (
    BlockBasedOptions,
    Cache,
    ColumnFamily,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from wkhost.errors import DataDirectoryError, StoreBusyError, StoreError
from wkhost.store.engine import MAX_SCAN_ROWS, Row
from wkhost.store.options import MIB, StoreOptions
from wkhost.store.worker import Worker

BLOOM_BITS_PER_KEY = 10
CLOSE_TIMEOUT_S = 30.0
"""Longest wait for RocksDB to close; after it the process may end all the same."""
_STALL_MARK = "Write stall"
_DAMAGE_MARKS = ("Corruption", "Invalid argument", "Not implemented")


class _SyncBatch:
    """The callers that share one fsync."""

    __slots__ = ("error", "finished")

    def __init__(self) -> None:
        self.finished = trio.Event()
        self.error: Exception | None = None


class RocksEngine:
    """`Engine` on RocksDB in the directory `path`. Made inside a trio run; `open` it first."""

    def __init__(
        self,
        path: Path,
        families: Iterable[str],
        *,
        options: StoreOptions,
        scanned: frozenset[str] = frozenset(),
    ) -> None:
        """`scanned` names the families that need no bloom filter."""
        self._path = path
        self._family_names = tuple(families)
        self._scanned = scanned
        self._options = options
        self._worker = Worker("store")
        self._write_options = WriteOptions()
        self._write_options.no_slowdown = True
        self._closed = False
        self._db: Rdict | None = None
        self._views: dict[str, Rdict] = {}
        self._handles: dict[str, ColumnFamily] = {}
        self._sync_error: Exception | None = None
        self._running: _SyncBatch | None = None
        self._next: _SyncBatch | None = None

    async def open(self) -> None:
        """Open the database, making it if it is not there.

        Raises DataDirectoryError if it is in use or damaged, StoreError if the disk refuses.
        """
        await self._worker.run(self._open)

    def get(self, family: str, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._views[family].get(key)
        except Exception as e:
            raise StoreError(f"cannot read family {family}: {e}") from e
        return value

    def scan(
        self, family: str, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        limit = min(limit, MAX_SCAN_ROWS)
        try:
            if reverse:
                return self._scan_back(family, start, end, limit)
            return self._scan_forth(family, start, end, limit)
        except Exception as e:
            raise StoreError(f"cannot read family {family}: {e}") from e

    def _scan_forth(
        self, family: str, start: bytes, end: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        read_options = ReadOptions()
        read_options.set_iterate_upper_bound(end)
        rows = self._views[family].iter(read_options)
        found: list[tuple[bytes, bytes]] = []
        try:
            rows.seek(start)
            while len(found) < limit and rows.valid():
                found.append((rows.key(), rows.value()))
                rows.next()
            rows.status()
        finally:
            del rows  # else the traceback of an error would keep the database open
        return found

    def _scan_back(
        self, family: str, start: bytes, end: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        rows = self._views[family].iter()
        found: list[tuple[bytes, bytes]] = []
        try:
            rows.seek_for_prev(end)
            if rows.valid() and rows.key() == end:
                rows.prev()
            while len(found) < limit and rows.valid():
                key = rows.key()
                if key < start:
                    break
                found.append((key, rows.value()))
                rows.prev()
            rows.status()
        finally:
            del rows  # as in `_scan_forth`
        return found

    def write(self, rows: Sequence[Row]) -> None:
        batch = WriteBatch(raw_mode=True)
        put, handles = batch.put, self._handles
        try:
            for family, key, value in rows:
                if value.__class__ is bytes:
                    put(key, value, handles[family])
                elif value is None:
                    batch.delete(key, handles[family])
                else:
                    batch.delete_range(key, value.end, handles[family])  # type: ignore[union-attr]
            self._database().write(batch, self._write_options)
        except Exception as e:
            if _STALL_MARK in str(e):
                raise StoreBusyError("the disk is behind with earlier writes") from e
            raise StoreError(f"cannot write: {e}") from e

    async def sync(self) -> None:
        self._check_not_closed()
        batch = self._next
        if batch is None:
            batch = self._next = _SyncBatch()
            if self._running is None:
                self._start_sync()
        await batch.finished.wait()
        if batch.error is not None:
            raise StoreError(f"cannot sync: {batch.error}") from batch.error

    async def reopen(self) -> None:
        self._check_not_closed()
        await self._worker.run(self._close_quietly)
        await self._worker.run(self._open)

    async def close(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await self._worker.run(self._close_quietly)
        self._worker.stop()

    def _check_not_closed(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    # --- sync, trio side

    def _start_sync(self) -> None:
        self._running, self._next = self._next, None
        self._worker.submit(self._flush, self._sync_done)

    def _sync_done(self, error: Exception | None) -> None:
        batch = self._running
        self._running = None
        if self._next is not None:
            self._start_sync()
        if batch is not None:
            batch.error = error
            batch.finished.set()

    # --- in the worker thread

    def _database(self) -> Rdict:
        if self._db is None:
            raise StoreError("the store is closed")
        return self._db

    def _flush(self) -> None:
        # The kernel tells a failed fsync once; the next one would lie about the same pages.
        if self._sync_error is not None:
            raise self._sync_error
        try:
            self._database().flush_wal(True)
        except Exception as e:
            self._sync_error = e
            raise

    def _open(self) -> None:
        options = _database_options(self._options)
        cache = Cache(self._options.block_cache_bytes)
        path = str(self._path)
        try:
            # A newer version may have more families; RocksDB opens only with all of them.
            there = Rdict.list_cf(path, options) if (self._path / "CURRENT").exists() else []
            names = {*self._family_names, *there}
            db = Rdict(
                path,
                options,
                {
                    name: _family_options(self._options, cache, bloom=name not in self._scanned)
                    for name in sorted(names)
                },
            )
        except Exception as e:
            raise _opening_error(self._path, e) from e
        self._sync_error = None
        self._db = db
        for name in self._family_names:
            self._views[name] = db.get_column_family(name)
            self._handles[name] = db.get_column_family_handle(name)

    def _close_quietly(self) -> None:
        """Close all objects. After a failed write or sync RocksDB reports that failure again
        here; it was told to the caller of that write, and the objects are closed all the same."""
        db, self._db = self._db, None
        parts = [*self._views.values(), *([] if db is None else [db])]
        # In place: the traceback of a failed write may hold these dictionaries.
        self._views.clear()
        self._handles.clear()
        for part in parts:
            with contextlib.suppress(Exception):
                part.close()


def _opening_error(path: Path, error: Exception) -> StoreError:
    text = str(error)
    if "lock" in text.lower():
        return DataDirectoryError(f"{path} is in use: {text}")
    if text.startswith(_DAMAGE_MARKS):
        return DataDirectoryError(f"{path} is damaged: {text}")
    return StoreError(f"cannot open {path}: {text}")


def _database_options(sizes: StoreOptions) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_db_write_buffer_size(sizes.write_buffer_bytes)
    # A family that is seldom written would hold every log file since; this bounds them.
    options.set_max_total_wal_size(max(4 * sizes.write_buffer_bytes, 64 * MIB))
    options.set_max_open_files(sizes.max_open_files)
    options.set_max_background_jobs(2)
    options.set_bytes_per_sync(MIB)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 * MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _family_options(sizes: StoreOptions, cache: Cache, *, bloom: bool) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_block_size(8 * 1024)
    if bloom:
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(sizes.mem_table_bytes)
    options.set_max_write_buffer_number(4)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_level_compaction_dynamic_level_bytes(True)
    return options
