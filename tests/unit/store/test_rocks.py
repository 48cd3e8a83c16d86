"""What the disk engine does with callers that share an fsync, stalls and a kept traceback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from wkhost.errors import StoreBusyError, StoreError
from wkhost.store import keys
from wkhost.store.engine import Row
from wkhost.store.options import MIB, StoreOptions
from wkhost.store.rocks import RocksEngine
from wkhost.store.worker import Worker


async def opened(path: Path, options: StoreOptions | None = None) -> RocksEngine:
    engine = RocksEngine(
        path, keys.FAMILIES, options=options or StoreOptions(), scanned=keys.SCANNED_FAMILIES
    )
    await engine.open()
    return engine


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RocksEngine]:
    made = await opened(tmp_path / "rocks")
    yield made
    await made.close()


async def test_callers_that_come_during_an_fsync_share_the_next(
    engine: RocksEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = 0
    flush = engine._flush

    def counted() -> None:
        nonlocal flushes
        flushes += 1
        flush()

    monkeypatch.setattr(engine, "_flush", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(engine.sync)
    assert flushes == 2


async def test_a_cancelled_caller_leaves_the_others_their_fsync(engine: RocksEngine) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.sync()
    assert scope.cancelled_caught
    await engine.sync()


async def test_after_a_failed_fsync_no_sync_succeeds_until_reopened(engine: RocksEngine) -> None:
    engine._sync_error = OSError("the disk")
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot sync: the disk"):
            await engine.sync()
    await engine.reopen()
    await engine.sync()


async def test_reopening_works_while_tracebacks_of_errors_are_kept(engine: RocksEngine) -> None:
    kept: list[BaseException] = []
    bad: list[Row] = [(keys.META, b"k", b"v"), ("no such family", b"k", b"v")]
    with pytest.raises(StoreError) as failed:
        engine.write(bad)
    kept.append(failed.value)
    with pytest.raises(StoreError) as unread:
        engine.scan(keys.META, "text", b"\xff", 1)  # type: ignore[arg-type]
    kept.append(unread.value)
    await engine.reopen()
    assert engine.get(keys.META, b"k") is None
    assert len(kept) == 2


async def test_a_write_stall_is_busy_and_the_same_rows_go_in_later(tmp_path: Path) -> None:
    sizes = StoreOptions(64 * 1024, MIB, 64 * MIB, 64)
    engine = await opened(tmp_path / "rocks", sizes)
    busy = written = 0
    while busy < 3:
        assert written < 1000, "no write stall could be provoked"
        rows: list[Row] = [(keys.META, b"%d-%d" % (written, i), bytes(8000)) for i in range(32)]
        while True:
            try:
                engine.write(rows)
            except StoreBusyError:
                busy += 1
                assert engine.get(*rows[0][:2]) is None
                await trio.sleep(0.001)  # the stall is real: background work must end it
            else:
                break
        written += 1
    for n in range(written):
        assert engine.get(keys.META, b"%d-31" % n) == bytes(8000)
    await engine.close()


async def test_a_closed_engine_refuses_everything(engine: RocksEngine) -> None:
    await engine.close()
    await engine.close()
    with pytest.raises(StoreError):
        engine.get(keys.META, b"k")
    with pytest.raises(StoreError):
        engine.scan(keys.META, b"", b"\xff", 1)
    with pytest.raises(StoreError):
        engine.write([(keys.META, b"k", b"v")])


def fail() -> None:
    raise KeyError("x")


async def test_the_worker_hands_errors_over_and_runs_in_order() -> None:
    worker = Worker("test")
    done: list[int] = []
    with pytest.raises(KeyError):
        await worker.run(fail)
    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(worker.run, lambda n=n: done.append(n))
            await wait_all_tasks_blocked()
    worker.stop()
    assert done == list(range(10))
