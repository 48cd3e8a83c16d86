"""What every store promises, run on the engine in memory and on the one on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from wkhost.errors import StoreError
from wkhost.store import keys, mutations
from wkhost.store.engine import MAX_SCAN_ROWS
from wkhost.store.keys import MemberKind
from wkhost.store.records import Member, PluginValue
from wkhost.store.store import Store, open_store
from wkhost.types import ChannelInfo, DeviceRecord, Message

GROUP = 2


@pytest.fixture(params=["memory", "rocks"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store(None if request.param == "memory" else tmp_path / "data")
    yield opened
    await opened.close()


def message(log_pos: int, seq: int, channel_id: str = "g", **changes: object) -> Message:
    fields: dict[str, object] = {
        "message_id": 10_000_000_000 + log_pos,
        "channel_id": channel_id,
        "channel_type": GROUP,
        "from_uid": "alice",
        "client_msg_no": f"no-{log_pos}",
        "payload": b"hello %d" % log_pos,
        "flags": 2,
        "setting": 8,
        "expire": 60,
        "topic": "t",
        "timestamp": 1_700_000_000 + log_pos,
        "message_seq": seq,
        "log_pos": log_pos,
        "hop": 1,
    }
    return Message(**{**fields, **changes})  # type: ignore[arg-type]


def channel_of(store: Store, count: int, channel_id: str = "g") -> list[Message]:
    first = store.last_log_pos() + 1
    return [message(first + i, i + 1, channel_id) for i in range(count)]


async def commit(store: Store, messages: Sequence[Message]) -> None:
    store.append(messages)
    await store.sync()


async def test_a_fresh_store_is_empty(store: Store) -> None:
    assert store.last_log_pos() == store.durable_log_pos == 0
    assert store.last_seq("g", GROUP) == 0
    assert store.read_messages("g", GROUP, 1, 100, 10) == []
    assert store.read_log(0, 10) == []
    assert store.message_by_id(1) is None
    assert store.find_client_msg_no("g", GROUP, "alice", "no-1") is None


async def test_a_message_comes_back_with_every_field(store: Store) -> None:
    sent = message(1, 1, payload=bytes(range(256)), client_msg_no="编号", from_uid="ü\0é")
    await commit(store, [sent])
    assert store.read_messages("g", GROUP, 1, 1, 1) == [sent]
    assert store.read_log(0, 1) == [sent]
    assert store.message_by_id(sent.message_id) == sent
    assert store.find_client_msg_no("g", GROUP, "ü\0é", "编号") == (sent.message_id, 1)
    assert store.messages_by_client_msg_no("g", GROUP, "编号") == [sent]


async def test_ranges_are_ascending_inclusive_and_limited_at_the_wanted_end(store: Store) -> None:
    await commit(store, channel_of(store, 20))

    def seqs(first: int, last: int, limit: int, newest_first: bool = False) -> list[int]:
        found = store.read_messages("g", GROUP, first, last, limit, newest_first)
        return [m.message_seq for m in found]

    assert seqs(5, 9, 100) == [5, 6, 7, 8, 9]
    assert seqs(5, 9, 2) == [5, 6]
    assert seqs(5, 9, 2, newest_first=True) == [8, 9]
    assert seqs(0, 2**32, 3, newest_first=True) == [18, 19, 20]
    assert seqs(15, 2**63, 100) == [15, 16, 17, 18, 19, 20]
    assert seqs(9, 5, 100) == []
    assert seqs(9, 5, 100, newest_first=True) == []
    assert seqs(21, 30, 100, newest_first=True) == []


async def test_numbers_out_of_range_find_nothing(store: Store) -> None:
    sent = message(1, 1)
    await commit(store, [sent])
    assert store.message_by_id(-1) is None
    assert store.message_by_id(2**64) is None
    assert store.read_messages("g", GROUP, -5, 2**70, 10) == [sent]
    assert store.read_messages("g", GROUP, 1, -1, 10) == []
    assert store.read_messages("g", GROUP, 1, 1, 0) == []
    assert store.read_messages("g", GROUP, 1, 1, -1, True) == []
    assert store.read_log(-3, 10) == [sent]


async def test_channels_do_not_mix(store: Store) -> None:
    names = ["", "a", "aa", "a\0", "b", "é" * 100]
    sent = [message(i + 1, 1, name) for i, name in enumerate(names)]
    twin = message(len(sent) + 1, 7, "a", channel_type=3)
    await commit(store, [*sent, twin])
    for m in sent:
        assert store.read_messages(m.channel_id, GROUP, 0, 2**40, 100) == [m]
        assert store.last_seq(m.channel_id, GROUP) == 1
    assert store.last_seq("a", 3) == 7
    assert store.last_seq("a", 1) == 0


async def test_the_log_gives_all_messages_in_commit_order_from_any_position(store: Store) -> None:
    sent: list[Message] = []
    for count in (1, 3, 300, 1, 1, 40):
        batch = [
            message(store.last_log_pos() + 1 + i, len(sent) + i + 1, f"c{i % 3}")
            for i in range(count)
        ]
        await commit(store, batch)
        sent += batch
    assert store.last_log_pos() == store.durable_log_pos == len(sent)
    for after in (0, 1, 2, 4, 5, 259, 260, 304, 305, 345, 346, 400):
        expected = sent[after : after + 50]
        assert store.read_log(after, 50) == expected
    assert store.read_log(0, 10_000) == sent[:MAX_SCAN_ROWS]
    assert store.read_log(3, 0) == []


async def test_messages_are_told_only_once_durable(store: Store) -> None:
    await commit(store, channel_of(store, 2))
    third = message(3, 3)
    store.append([third])
    assert store.last_log_pos() == 3
    assert store.durable_log_pos == 2
    assert store.last_seq("g", GROUP) == 3
    assert [m.message_seq for m in store.read_messages("g", GROUP, 1, 9, 9)] == [1, 2]
    assert [m.message_seq for m in store.read_messages("g", GROUP, 1, 9, 9, True)] == [1, 2]
    assert store.read_log(2, 10) == []
    assert store.message_by_id(third.message_id) is None
    assert store.find_client_msg_no("g", GROUP, "alice", "no-3") is None
    assert store.messages_by_client_msg_no("g", GROUP, "no-3") == []
    await store.sync()
    assert store.durable_log_pos == 3
    assert store.read_log(2, 10) == [third]
    assert store.find_client_msg_no("g", GROUP, "alice", "no-3") == (third.message_id, 3)


async def test_a_gap_in_log_pos_is_refused_and_nothing_written(store: Store) -> None:
    await commit(store, [message(1, 1)])
    for bad in ([message(3, 2)], [message(2, 2), message(4, 3)], [message(1, 2)]):
        with pytest.raises(ValueError, match="log_pos"):
            store.append(bad)
    assert store.last_log_pos() == 1
    assert store.last_seq("g", GROUP) == 1


async def test_messages_with_one_client_msg_no_are_all_found(store: Store) -> None:
    a = message(1, 1, client_msg_no="x", from_uid="bob")
    b = message(2, 2, client_msg_no="x", from_uid="alice")
    other = message(3, 3, client_msg_no="xy")
    elsewhere = message(4, 1, "h", client_msg_no="x")
    without = message(5, 4, client_msg_no="")
    await commit(store, [a, b, other, elsewhere, without])
    assert store.messages_by_client_msg_no("g", GROUP, "x") == [a, b]
    assert store.find_client_msg_no("g", GROUP, "alice", "x") == (b.message_id, 2)
    assert store.find_client_msg_no("g", GROUP, "carol", "x") is None
    assert store.messages_by_client_msg_no("g", GROUP, "") == []


async def test_rows_given_with_messages_are_written_with_them(store: Store) -> None:
    store.append([message(1, 1)], mutations.put_cursor("observer", 1))
    store.append([], mutations.put_message_id_ceiling(2**62))
    await store.sync()
    assert store.cursor("observer") == 1
    assert store.message_id_ceiling() == 2**62


async def test_many_syncs_at_once_all_return(store: Store) -> None:
    async def one(seq: int) -> None:
        store.append([message(store.last_log_pos() + 1, 1, f"c{seq}")])
        mine = store.last_log_pos()
        await store.sync()
        assert store.durable_log_pos >= mine

    async with trio.open_nursery() as nursery:
        for seq in range(50):
            nursery.start_soon(one, seq)
    assert store.durable_log_pos == 50


async def test_recover_takes_back_what_was_not_durable(store: Store) -> None:
    await commit(store, channel_of(store, 300))
    lost = [message(301 + i, 301 + i) for i in range(300)]
    store.append(lost[:10])
    store.append(lost[10:])
    await store.recover()
    assert store.last_log_pos() == store.durable_log_pos == 300
    assert store.last_seq("g", GROUP) == 300
    again = message(301, 301, client_msg_no="new")
    await commit(store, [again])
    assert store.read_log(300, 10) == [again]
    for m in lost:
        assert store.message_by_id(m.message_id) in (None, again)
        assert store.find_client_msg_no("g", GROUP, "alice", m.client_msg_no) is None
    assert store.statistics().undone == 300
    assert store.statistics().recoveries == 1


async def test_recover_of_a_healthy_store_changes_nothing(store: Store) -> None:
    sent = channel_of(store, 3)
    await commit(store, sent)
    await store.recover()
    assert store.read_log(0, 10) == sent
    assert not store.failed


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        store.last_seq("g", GROUP)
    with pytest.raises(StoreError, match="closed"):
        store.write(mutations.put_user("u"))
    with pytest.raises(StoreError, match="closed"):
        await store.sync()
    with pytest.raises(StoreError, match="closed"):
        await store.recover()


async def test_channel_records(store: Store) -> None:
    assert store.channel_info("g", GROUP) is None
    info = ChannelInfo(large=True, ban=False, disband=True, send_ban=False, allow_stranger=True)
    store.write(mutations.put_channel("g", GROUP, info))
    assert store.channel_info("g", GROUP) == info
    assert store.channel_info("g", 3) is None
    store.write(mutations.put_channel("g", GROUP, ChannelInfo(send_ban=True)))
    assert store.channel_info("g", GROUP) == ChannelInfo(send_ban=True)
    store.write(mutations.put_members(MemberKind.DENYLIST, "g", GROUP, ["x"]))
    store.write(mutations.delete_channel("g", GROUP))
    assert store.channel_info("g", GROUP) is None
    assert not store.any_member(MemberKind.DENYLIST, "g", GROUP)


async def test_lists_of_a_channel_are_apart_and_paged_in_order(store: Store) -> None:
    uids = [f"u{i:04}" for i in range(700)]
    store.write(mutations.put_members(MemberKind.SUBSCRIBER, "g", GROUP, reversed(uids)))
    store.write(mutations.put_members(MemberKind.SUBSCRIBER, "g", GROUP, ["u0001"], role=1))
    store.write(mutations.put_members(MemberKind.SUBSCRIBER, "gg", GROUP, ["other"]))
    store.write(mutations.put_members(MemberKind.ALLOWLIST, "g", GROUP, ["vip"]))
    assert store.has_member(MemberKind.SUBSCRIBER, "g", GROUP, "u0699")
    assert not store.has_member(MemberKind.SUBSCRIBER, "g", GROUP, "u069")
    assert not store.has_member(MemberKind.DENYLIST, "g", GROUP, "u0699")
    assert store.any_member(MemberKind.ALLOWLIST, "g", GROUP)
    assert not store.any_member(MemberKind.DENYLIST, "g", GROUP)
    assert await store.member_count(MemberKind.SUBSCRIBER, "g", GROUP) == 700
    assert await store.member_count(MemberKind.DENYLIST, "g", GROUP) == 0
    found: list[Member] = []
    after = ""
    while page := store.list_members(MemberKind.SUBSCRIBER, "g", GROUP, after, 300):
        assert len(page) <= MAX_SCAN_ROWS
        found += page
        after = page[-1].uid
    assert [m.uid for m in found] == uids
    assert [m.uid for m in found if m.role == 1] == ["u0001"]


async def test_members_are_removed_cleared_and_replaced(store: Store) -> None:
    kind = MemberKind.SUBSCRIBER
    store.write(mutations.put_members(kind, "g", GROUP, ["a", "b", "c"]))
    store.write(mutations.put_members(MemberKind.DENYLIST, "g", GROUP, ["a"]))
    store.write(mutations.delete_members(kind, "g", GROUP, ["b", "unknown"]))
    assert store.list_members(kind, "g", GROUP) == [Member("a", 0), Member("c", 0)]
    store.write(
        [
            *mutations.clear_members(kind, "g", GROUP),
            *mutations.put_members(kind, "g", GROUP, ["c", "d"]),
        ]
    )
    assert store.list_members(kind, "g", GROUP) == [Member("c", 0), Member("d", 0)]
    assert store.has_member(MemberKind.DENYLIST, "g", GROUP, "a")


async def test_users_devices_and_system_uids(store: Store) -> None:
    assert not store.user_exists("u")
    app, web = DeviceRecord("t1", 1), DeviceRecord("t2", 0)
    store.write([*mutations.put_device("u", 0, app), *mutations.put_device("u", 1, web)])
    store.write(mutations.put_device("uu", 0, web))
    assert store.user_exists("u")
    assert store.device("u", 0) == app
    assert store.device("u", 2) is None
    assert store.devices("u") == {0: app, 1: web}
    store.write(mutations.delete_device("u", 0))
    assert store.devices("u") == {1: web}
    assert store.user_exists("u")
    store.write(mutations.put_user("plain"))
    assert store.user_exists("plain")
    assert store.devices("plain") == {}
    store.write(mutations.put_system_uids(["sys2", "sys1", "sys3"]))
    store.write(mutations.delete_system_uids(["sys3"]))
    assert store.list_system_uids() == ["sys1", "sys2"]
    assert store.list_system_uids("sys1", 10) == ["sys2"]
    assert store.is_system_uid("sys1")
    assert not store.is_system_uid("u")


async def test_plugin_values_expire_and_are_paged_by_prefix(store: Store) -> None:
    for i in range(10):
        store.write(mutations.put_plugin_value("p", f"k/{i}", b"%d" % i, i + 1))
    store.write(mutations.put_plugin_value("p", "other", b"x", 1))
    store.write(mutations.put_plugin_value("pp", "k/1", b"no", 1))
    store.write(mutations.put_plugin_value("p", "k/3", b"old", 9, expires_at_ms=1000))
    assert store.plugin_value("p", "k/1", 0) == PluginValue(b"1", 2, 0)
    assert store.plugin_value("p", "k/3", 999) == PluginValue(b"old", 9, 1000)
    assert store.plugin_value("p", "k/3", 1000) is None
    assert store.plugin_value("q", "k/1", 0) is None
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = store.list_plugin_values("p", "k/", after, 4, now_ms=5000)
        found += [key for key, _ in page]
    assert found == [f"k/{i}" for i in range(10) if i != 3]
    everything, _ = store.list_plugin_values("p", now_ms=0)
    assert len(everything) == 11
    store.write(mutations.delete_plugin_value("p", "other"))
    assert store.plugin_value("p", "other", 0) is None
    store.write(mutations.clear_plugin_values("p"))
    assert store.list_plugin_values("p", now_ms=0) == ([], None)
    assert store.plugin_value("pp", "k/1", 0) is not None


async def test_expired_rows_are_found_page_by_page(store: Store) -> None:
    for i in range(20):
        store.write(mutations.put_cache(b"k%02d" % i, b"v", 1000 if i % 2 else 3000))
    assert store.cached(b"k00", 2000) == b"v"
    assert store.cached(b"k01", 2000) is None
    assert store.cached(b"none", 0) is None
    start: bytes | None = b""
    removed = 0
    while start is not None:
        rows, start = store.expired_rows(keys.CACHE, 2000, start, 6)
        store.write(rows)
        removed += len(rows)
    assert removed == 10
    assert store.cached(b"k01", 0) is None
    assert store.cached(b"k02", 0) == b"v"
    store.write(mutations.delete_cache(b"k02"))
    assert store.cached(b"k02", 0) is None
    store.write(mutations.put_plugin_value("p", "a", b"", 1, expires_at_ms=5))
    assert store.expired_rows(keys.PLUGIN, 5)[0] == mutations.delete_plugin_value("p", "a")


async def test_cursors_and_meta_values(store: Store) -> None:
    assert store.cursor("a") is None
    store.write([*mutations.put_cursor("a", 7), *mutations.put_meta("m", b"v")])
    assert store.cursor("a") == 7
    assert store.meta("m") == b"v"
    store.write([*mutations.delete_cursor("a"), *mutations.delete_meta("m")])
    assert store.cursor("a") is None
    assert store.meta("m") is None
    assert store.message_id_ceiling() == 0


async def test_statistics_count(store: Store) -> None:
    await commit(store, channel_of(store, 5))
    store.last_seq("g", GROUP)
    totals = store.statistics()
    assert totals.messages == 5
    assert totals.rows == 16
    assert totals.reads == 1
    assert sum(totals.writes.counts) == sum(totals.syncs.counts) == 1
    assert totals.syncs.total_s > 0
