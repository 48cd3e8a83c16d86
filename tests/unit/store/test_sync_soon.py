"""Syncs that may wait share one with whoever comes, and nobody is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from wkhost.errors import StoreError
from wkhost.store import mutations
from wkhost.store.keys import FAMILIES
from wkhost.store.memory import MemoryEngine
from wkhost.store.store import SHARE_WITHIN_S, Store

CALLERS = 20


class _Engine(MemoryEngine):
    """Counts syncs, holds them up, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(FAMILIES)
        self.syncs = 0
        self.fails = False
        self.may_go = trio.Event()
        self.may_go.set()

    async def sync(self) -> None:
        self.syncs += 1
        await self.may_go.wait()
        if self.fails:
            raise StoreError("the disk is gone")
        await super().sync()


@pytest.fixture
def engine() -> _Engine:
    return _Engine()


@pytest.fixture
async def store(engine: _Engine) -> AsyncIterator[Store]:
    store = Store(engine)
    await store.start()
    engine.syncs = 0
    yield store
    await store.close()


async def test_many_share_the_sync_of_a_commit(store: Store, engine: _Engine) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(store.sync_soon)
        await wait_all_tasks_blocked()
        assert engine.syncs == 0
        await store.sync()
    assert engine.syncs == 1


async def test_where_nobody_comes_one_of_them_syncs_for_all(store: Store, engine: _Engine) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(store.sync_soon)
    assert engine.syncs == 1
    assert trio.current_time() - began >= SHARE_WITHIN_S


async def test_a_sync_that_began_before_the_write_does_not_count(
    store: Store, engine: _Engine
) -> None:
    engine.may_go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.sync)
        await wait_all_tasks_blocked()
        store.write(mutations.put_user("late"))
        nursery.start_soon(store.sync_soon)
        await trio.sleep(2 * SHARE_WITHIN_S)
        assert engine.syncs == 2
        engine.may_go.set()


async def test_all_hear_of_a_failure(store: Store, engine: _Engine) -> None:
    engine.fails = True
    told: list[str] = []

    async def ask() -> None:
        with pytest.raises(StoreError) as caught:
            await store.sync_soon()
        told.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(CALLERS):
            nursery.start_soon(ask)
    assert told == ["the disk is gone"] * CALLERS
    assert store.failed


async def test_the_others_go_on_when_the_one_who_syncs_is_cancelled(
    store: Store, engine: _Engine
) -> None:
    engine.may_go = trio.Event()
    done: list[int] = []

    async def ask(number: int) -> None:
        await store.sync_soon()
        done.append(number)

    first = trio.CancelScope()

    async def ask_first() -> None:
        with first:
            await store.sync_soon()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_first)
        await trio.sleep(SHARE_WITHIN_S / 2)  # so that it is the first to lose patience
        for number in range(CALLERS):
            nursery.start_soon(ask, number)
        await trio.sleep(2 * SHARE_WITHIN_S)
        assert engine.syncs == 1
        first.cancel()
        await trio.sleep(2 * SHARE_WITHIN_S)
        engine.may_go.set()
    assert sorted(done) == list(range(CALLERS))
    assert engine.syncs == 2
