"""A plugin's key-value store: versions, expiry, pages, and a quota that holds under writers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host import kv
from wkhost.plugin_host.grpc import GrpcError, StatusCode
from wkhost.plugin_host.kv import ENTRY_OVERHEAD_BYTES, KeyValues
from wkhost.store.store import Store, open_store

QUOTA = 100_000


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    opened = await open_store(None)
    yield opened
    await opened.close()


async def test_put_get_delete(store: Store) -> None:
    values = KeyValues("a", store)
    assert values.get(b"k") is None
    first = await values.put(b"k", b"1", QUOTA)
    second = await values.put(b"k", b"2", QUOTA)
    assert second > first > 0
    found = values.get(b"k")
    assert found is not None
    assert (found.value, found.version) == (b"2", second)
    assert KeyValues("b", store).get(b"k") is None
    assert await values.delete(b"k")
    assert not await values.delete(b"k")
    assert values.get(b"k") is None


async def test_compare_and_set(store: Store) -> None:
    values = KeyValues("a", store)
    version = await values.put(b"k", b"1", QUOTA, if_version=0)
    for wrong in (0, version + 1):
        with pytest.raises(GrpcError) as caught:
            await values.put(b"k", b"2", QUOTA, if_version=wrong)
        assert caught.value.code is StatusCode.ABORTED
        with pytest.raises(GrpcError):
            await values.delete(b"k", if_version=wrong)
    assert await values.delete(b"k", if_version=version)
    again = await values.put(b"k", b"3", QUOTA, if_version=0)
    assert again > version, "the number of a deleted value must never return"


async def test_only_one_of_many_compare_and_sets_wins(store: Store) -> None:
    values = KeyValues("a", store)
    won: list[int] = []

    async def writer(number: int) -> None:
        try:
            await values.put(b"k", b"%d" % number, QUOTA, if_version=0)
        except GrpcError:
            return
        won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(writer, number)
    assert len(won) == 1


async def test_the_quota_is_exact_under_16_writers(store: Store) -> None:
    values = KeyValues("a", store)
    size = 3 + 10 + ENTRY_OVERHEAD_BYTES
    refused: list[StatusCode] = []

    async def writer(number: int) -> None:
        for step in range(4):
            try:
                await values.put(b"%03d" % (number * 4 + step), bytes(10), 20 * size)
            except GrpcError as error:
                refused.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(writer, number)
    assert len(values.scan(b"", b"", 256)[0]) == 20
    assert refused == [StatusCode.RESOURCE_EXHAUSTED] * (64 - 20)
    first = values.scan(b"", b"", 1)[0][0].key
    await values.put(first, bytes(10), 20 * size)
    assert await values.delete(first)
    await values.put(b"new", bytes(10), 20 * size)
    with pytest.raises(GrpcError):
        await KeyValues("a", store).put(b"one", bytes(10), 20 * size)


async def test_expired_values_are_gone_and_free_their_quota(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000]
    monkeypatch.setattr(kv, "_now_ms", lambda: now[0])
    values = KeyValues("a", store)
    size = 1 + 10 + ENTRY_OVERHEAD_BYTES
    await values.put(b"a", bytes(10), size, ttl_ms=500)
    with pytest.raises(GrpcError):
        await values.put(b"b", bytes(10), size)
    now[0] += 501
    assert values.get(b"a") is None
    await values.put(b"b", bytes(10), size)
    assert [entry.key for entry in values.scan(b"", b"", 0)[0]] == [b"b"]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [(b"", b"", "key"), (b"k" * 513, b"", "key"), (b"k", bytes(2**20 + 1), "value")],
)
async def test_sizes_are_checked(store: Store, key: bytes, value: bytes, field: str) -> None:
    with pytest.raises(GrpcError, match=f"{field}: expected") as caught:
        await KeyValues("a", store).put(key, value, 2**30)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


@given(
    keys=st.sets(st.binary(min_size=1, max_size=3), max_size=30),
    prefix=st.binary(max_size=1),
    limit=st.integers(1, 7),
)
def test_pages_give_every_key_of_the_prefix_once_in_order(
    keys: set[bytes], prefix: bytes, limit: int
) -> None:
    async def main() -> list[bytes]:
        store = await open_store(None)
        values = KeyValues("a", store)
        for key in keys:
            await values.put(key, b"", QUOTA)
        found: list[bytes] = []
        more = True
        while more:
            page, more = values.scan(prefix, found[-1] if found else b"", limit)
            assert page or not more
            found += [entry.key for entry in page]
        await store.close()
        return found

    assert trio.run(main) == sorted(key for key in keys if key.startswith(prefix))


async def test_a_copy_has_every_change_up_to_its_end_and_none_after(store: Store) -> None:
    old, new = KeyValues("a", store), KeyValues("a", store, 1)
    for number in range(300):
        await old.put(b"%03d" % number, b"first", QUOTA)
    changed = trio.Event()

    async def change() -> None:
        for number in range(0, 300, 3):
            await old.put(b"%03d" % number, b"second", QUOTA)
        await old.delete(b"001")
        await old.put(b"new", b"second", QUOTA)
        changed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await old.copy_to(new)
        await changed.wait()
        old.finish_copy(new)
    await old.put(b"002", b"too late", QUOTA)
    expected = {b"%03d" % n: b"second" if n % 3 == 0 else b"first" for n in range(300)}
    del expected[b"001"]
    expected[b"new"] = b"second"
    found, after = {}, b""
    while True:
        page, more = new.scan(b"", after, 100)
        found.update({entry.key: entry.value for entry in page})
        if not more:
            break
        after = page[-1].key
    assert found == expected
    before = new.get(b"000")
    assert before is not None
    assert await new.put(b"000", b"x", QUOTA) > before.version, "versions go on, none comes twice"
    await new.clear()
    kept = old.get(b"002")
    assert kept is not None
    assert kept.value == b"too late"


async def test_a_writer_that_may_not_write_any_more_changes_nothing(store: Store) -> None:
    values = KeyValues("a", store)
    await values.put(b"k", b"v", QUOTA)

    def refuse() -> None:
        raise GrpcError(StatusCode.FAILED_PRECONDITION, "superseded")

    with pytest.raises(GrpcError, match="superseded"):
        await values.put(b"k", b"other", QUOTA, check=refuse)
    with pytest.raises(GrpcError, match="superseded"):
        await values.delete(b"k", check=refuse)
    found = values.get(b"k")
    assert found is not None
    assert found.value == b"v"
