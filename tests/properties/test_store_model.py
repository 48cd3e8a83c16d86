"""A store against a plain model: any mix of writes, failures and recoveries, on both engines."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from wkhost.errors import StoreBusyError, StoreError
from wkhost.store import keys, mutations
from wkhost.store.engine import Engine, Row
from wkhost.store.keys import MemberKind
from wkhost.store.memory import MemoryEngine
from wkhost.store.options import StoreOptions
from wkhost.store.rocks import RocksEngine
from wkhost.store.store import Store
from wkhost.types import Message

CHANNELS = ("", "a", "a\0b", "ab", "é")
UIDS = ("", "u", "u\0", "v", "\U0010ffff")
SUBSCRIBER = MemberKind.SUBSCRIBER


class FaultyEngine:
    """An engine whose next write or sync can be made to fail."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.next_write: StoreError | None = None
        self.next_sync: StoreError | None = None
        self.next_reopen: StoreError | None = None
        self.get = inner.get
        self.scan = inner.scan
        self.close = inner.close

    def write(self, rows: Sequence[Row]) -> None:
        error, self.next_write = self.next_write, None
        if error is not None:
            raise error
        self.inner.write(rows)

    async def sync(self) -> None:
        error, self.next_sync = self.next_sync, None
        if error is not None:
            raise error
        await self.inner.sync()

    async def reopen(self) -> None:
        await self.inner.reopen()
        error, self.next_reopen = self.next_reopen, None
        if error is not None:
            raise error


channel = st.sampled_from(CHANNELS)
operation = st.one_of(
    st.tuples(st.just("append"), st.lists(st.tuples(channel, st.booleans()), max_size=5)),
    st.tuples(st.just("big"), st.integers(250, 520)),
    st.tuples(st.just("sync")),
    st.tuples(st.just("busy")),
    st.tuples(st.just("fail_write")),
    st.tuples(st.just("fail_sync")),
    st.tuples(st.just("recover"), st.booleans()),
    st.tuples(st.just("put_members"), channel, st.sets(st.sampled_from(UIDS), min_size=1)),
    st.tuples(st.just("delete_members"), channel, st.sets(st.sampled_from(UIDS))),
    st.tuples(st.just("clear_members"), channel),
    st.tuples(st.just("delete_channel"), channel),
)


class Model:
    """What the store must hold, in plain lists and dictionaries."""

    def __init__(self, store: Store, engine: FaultyEngine) -> None:
        self.store, self.engine = store, engine
        self.written: list[Message] = []
        self.durable = 0
        self.members: dict[str, set[str]] = {name: set() for name in CHANNELS}
        self.next_id = 0

    def make(self, wanted: Sequence[tuple[str, bool]]) -> list[Message]:
        made: list[Message] = []
        for channel_id, numbered in wanted:
            self.next_id += 1
            earlier = [m for m in (*self.written, *made) if m.channel_id == channel_id]
            number = f"n{self.next_id}" if numbered else ""
            made.append(
                Message(
                    message_id=self.next_id,
                    channel_id=channel_id,
                    channel_type=2,
                    from_uid=UIDS[self.next_id % len(UIDS)],
                    client_msg_no=number,
                    payload=b"p" * (self.next_id % 7),
                    message_seq=len(earlier) + 1,
                    log_pos=len(self.written) + len(made) + 1,
                )
            )
        return made

    async def do(self, name: str, *given: object) -> None:
        await getattr(self, name)(*given)

    async def append(self, wanted: Sequence[tuple[str, bool]]) -> None:
        made = self.make(wanted)
        self.store.append(made)
        self.written += made

    async def big(self, count: int) -> None:
        await self.append([(CHANNELS[i % 3], i % 2 == 0) for i in range(count)])

    async def sync(self) -> None:
        await self.store.sync()
        self.durable = len(self.written)

    async def busy(self) -> None:
        self.engine.next_write = StoreBusyError("stall")
        made = self.make([("a", True)])
        with pytest.raises(StoreBusyError):
            self.store.append(made)
        self.store.append(made)
        self.written += made

    async def fail_write(self) -> None:
        self.engine.next_write = StoreError("disk")
        with pytest.raises(StoreError):
            self.store.append(self.make([("a", True), ("ab", False)]))
        await self.after_failure()

    async def fail_sync(self) -> None:
        self.engine.next_sync = StoreError("disk")
        with pytest.raises(StoreError):
            await self.store.sync()
        await self.after_failure()

    async def after_failure(self) -> None:
        assert self.store.failed
        with pytest.raises(StoreError, match="recover"):
            self.store.write(mutations.put_user("x"))
        with pytest.raises(StoreError, match="recover"):
            await self.store.sync()
        await self.recover(True)

    async def recover(self, fails_once: bool) -> None:
        if fails_once:
            self.engine.next_reopen = StoreError("disk")
            with pytest.raises(StoreError):
                await self.store.recover()
            with pytest.raises(StoreBusyError):
                self.store.last_seq("a", 2)
            with pytest.raises(StoreBusyError):
                self.store.append([])
        await self.store.recover()
        del self.written[self.durable :]

    async def put_members(self, channel_id: str, uids: set[str]) -> None:
        self.store.write(mutations.put_members(SUBSCRIBER, channel_id, 2, uids))
        self.members[channel_id] |= uids

    async def delete_members(self, channel_id: str, uids: set[str]) -> None:
        self.store.write(mutations.delete_members(SUBSCRIBER, channel_id, 2, uids))
        self.members[channel_id] -= uids

    async def clear_members(self, channel_id: str) -> None:
        self.store.write(mutations.clear_members(SUBSCRIBER, channel_id, 2))
        self.members[channel_id] = set()

    async def delete_channel(self, channel_id: str) -> None:
        self.store.write(mutations.delete_channel(channel_id, 2))
        self.members[channel_id] = set()

    def compare(self) -> None:
        store, durable = self.store, self.written[: self.durable]
        assert store.last_log_pos() == len(self.written)
        assert store.durable_log_pos == self.durable
        for after in {0, self.durable // 2, max(0, self.durable - 3)}:
            assert store.read_log(after, 100) == durable[after : after + 100]
        for name in CHANNELS:
            mine = [m for m in durable if m.channel_id == name]
            assert store.read_messages(name, 2, 1, 2**32, 9, newest_first=True) == mine[-9:]
            assert store.read_messages(name, 2, 2, 2**32, 9) == mine[1:10]
            assert store.last_seq(name, 2) == sum(m.channel_id == name for m in self.written)
            found = {m.uid for m in store.list_members(SUBSCRIBER, name, 2)}
            assert found == self.members[name]
            assert store.has_member(SUBSCRIBER, name, 2, "") == ("" in self.members[name])
            assert store.any_member(SUBSCRIBER, name, 2) == bool(self.members[name])
        for m in self.written[-12:]:
            known = m.log_pos <= self.durable
            assert store.message_by_id(m.message_id) == (m if known else None)
            if m.client_msg_no:
                found_ids = store.find_client_msg_no(m.channel_id, 2, m.from_uid, m.client_msg_no)
                assert found_ids == ((m.message_id, m.message_seq) if known else None)
        for lost in range(self.next_id - 12, self.next_id + 1):
            if lost not in {m.message_id for m in self.written[-600:]}:
                assert store.message_by_id(lost) is None


async def scenario(engine: Engine, operations: Sequence[tuple[object, ...]]) -> None:
    faulty = FaultyEngine(engine)
    store = Store(faulty)
    await store.start()
    model = Model(store, faulty)
    try:
        for name, *given_arguments in operations:
            await model.do(str(name), *given_arguments)
            model.compare()
    finally:
        await store.close()


@given(st.lists(operation, max_size=25))
@settings(max_examples=150, deadline=None)
def test_the_memory_store_behaves_like_the_model(operations: list[tuple[object, ...]]) -> None:
    trio.run(scenario, MemoryEngine(keys.FAMILIES), operations)


async def on_disk(path: Path, operations: Sequence[tuple[object, ...]]) -> None:
    engine = RocksEngine(path, keys.FAMILIES, options=StoreOptions(), scanned=keys.SCANNED_FAMILIES)
    await engine.open()
    await scenario(engine, operations)


@given(st.lists(operation, max_size=20))
@settings(max_examples=25, deadline=None)
def test_the_disk_store_behaves_like_the_model(operations: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(on_disk, Path(directory) / "rocks", operations)
