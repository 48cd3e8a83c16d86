"""Fan-out: everyone once, in order, in slices, and on in spite of a store that reopens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.kit.kernel import RecordingOutbox
from wkhost.delivery.fanout import RELOAD_DELAY_S, SLICE, Fanout
from wkhost.delivery.members import MemberLists
from wkhost.delivery.presence import Presence, Session
from wkhost.errors import StoreError
from wkhost.protocol.packets import Recv
from wkhost.store.keys import MemberKind
from wkhost.store.records import Member
from wkhost.types import SYSTEM_UID, Flags, Message


class Groups:
    """Implements `MemberReader`: one list for every channel."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.broken = 0

    def list_members(
        self, kind: MemberKind, channel_id: str, channel_type: int, after_uid: str, limit: int
    ) -> Sequence[Member]:
        if self.broken:
            self.broken -= 1
            raise StoreError("reopening")
        return [Member(uid, 0) for uid in self.uids if uid > after_uid][:limit]


class SlicingOutbox(RecordingOutbox):
    """Notes how many frames are queued between two flushes."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = [0]

    def recv(self, recv: Recv, conn_ids: Sequence[int]) -> None:
        super().recv(recv, conn_ids)
        self.slices[-1] += len(conn_ids)

    def flush(self) -> None:
        self.slices.append(0)


class Bench:
    def __init__(self) -> None:
        self.outbox = SlicingOutbox()
        self.presence = Presence()
        self.groups = Groups()
        self.delivered: list[int] = []
        self.fanout = Fanout(
            self.outbox,
            self.presence,
            MemberLists(self.groups),
            trio.current_time,
            self.delivered.append,
        )
        self._seqs = iter(range(1, 100_000))

    def online(self, *uids: str) -> list[int]:
        conn_ids = []
        for uid in uids:
            conn_id = len(self.presence) + 1
            self.presence.add(Session(conn_id, uid, f"d{conn_id}", 0, 0, ""))
            conn_ids.append(conn_id)
        return conn_ids

    def deliver(
        self,
        channel_id: str,
        channel_type: int,
        from_uid: str = "a",
        *,
        conn_id: int = 0,
        flags: int = 0,
        recipients: Sequence[str] | None = None,
    ) -> Message:
        seq = next(self._seqs)
        m = Message(
            seq, channel_id, channel_type, from_uid, "", b"%d" % seq, flags, message_seq=seq
        )
        self.fanout.deliver(m, len(m.payload), conn_id, recipients)
        return m

    def counts(self, conn_ids: Sequence[int]) -> list[int]:
        return [len(self.outbox.recvs.get(conn_id, ())) for conn_id in conn_ids]

    async def settle(self) -> None:
        with trio.fail_after(30):
            await wait_all_tasks_blocked()
            while self.fanout.statistics()["waiting_channels"]:
                # The task sleeps while the store reopens; virtual time passes meanwhile.
                await trio.sleep(RELOAD_DELAY_S)
                await wait_all_tasks_blocked()


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    b = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(b.fanout.run)
        yield b
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("channel_type", [0, 2, 4, 5, 6, 7, 8, 9, 12, 13, 255])
async def test_groups_of_every_type_reach_their_subscribers(channel_type: int) -> None:
    async with bench() as b:
        b.groups.uids = ["a", "b"]
        conns = b.online("a", "b", "c")
        b.deliver("g", channel_type, conn_id=conns[0])
        assert b.counts(conns) == [0, 1, 0]


@pytest.mark.parametrize(("channel_type", "channel_id"), [(3, "v|desk"), (10, "v")])
@pytest.mark.parametrize("twin", ["", "____cmd"])
async def test_the_visitor_is_reached_without_being_a_subscriber(
    channel_type: int, channel_id: str, twin: str
) -> None:
    async with bench() as b:
        b.groups.uids = ["agent"]
        conns = b.online("v", "agent", "c")
        b.deliver(channel_id + twin, channel_type, "agent", conn_id=conns[1])
        b.groups.uids = ["agent", "v"]
        assert b.counts(conns) == [1, 0, 0]
        b.deliver(channel_id + twin, channel_type, "v", conn_id=conns[0])
        assert b.counts(conns) == [1, 1, 0]


@pytest.mark.parametrize("channel_type", [1, 11])
async def test_both_halves_are_reached_and_nobody_twice(channel_type: int) -> None:
    async with bench() as b:
        conns = b.online("a", "b", "a", "c")
        b.deliver("b@a", channel_type, conn_id=conns[0])
        assert b.counts(conns) == [0, 1, 1, 0]
        b.deliver("a@a", channel_type, conn_id=conns[0])
        assert b.counts(conns) == [0, 1, 2, 0]


async def test_the_system_account_never_receives() -> None:
    async with bench() as b:
        conns = b.online(SYSTEM_UID, "b")
        b.deliver(f"{SYSTEM_UID}@b", 1, "b", conn_id=conns[1])
        b.groups.uids = [SYSTEM_UID, "b"]
        b.deliver("g", 2)
        b.groups.uids = [SYSTEM_UID, *(f"m{n:04}" for n in range(300))]
        b.deliver("large", 2)
        await b.settle()
        assert b.counts(conns) == [0, 1]


async def test_only_stored_messages_await_recvack() -> None:
    async with bench() as b:
        [conn] = b.online("b")
        stored = b.deliver("b@a", 1)
        b.deliver("b@a", 1, flags=Flags.NO_PERSIST)
        assert list(b.presence.by_conn[conn].pending) == [stored.message_id]


async def test_a_large_group_is_served_in_slices_once_each_and_in_order() -> None:
    async with bench() as b:
        b.groups.uids = [f"u{n:05}" for n in range(1000)]
        conns = b.online(*b.groups.uids[:700])
        sent = [b.deliver("g", 2, conn_id=conns[3], from_uid="u00003") for _ in range(4)]
        other = b.deliver("b@a", 1)
        await b.settle()
        for index, conn in enumerate(conns):
            got = [recv.message_id for recv in b.outbox.recvs.get(conn, [])]
            assert got == ([] if index == 3 else [m.message_id for m in sent])
        assert max(b.outbox.slices) <= SLICE
        assert sorted(b.delivered) == sorted(len(m.payload) for m in [*sent, other])


async def test_a_user_with_many_connections_is_served_in_slices_too() -> None:
    async with bench() as b:
        conns = b.online(*["b"] * 1000)
        for _ in range(2):
            b.deliver("b@a", 1)
        await b.settle()
        assert b.counts(conns) == [2] * 1000
        assert all([recv.message_seq for recv in b.outbox.recvs[c]] == [1, 2] for c in conns)
        assert max(b.outbox.slices) <= SLICE


async def test_two_large_groups_take_turns() -> None:
    async with bench() as b:
        b.groups.uids = [f"u{n:05}" for n in range(500)]
        conns = b.online(*b.groups.uids)
        b.deliver("g", 2)
        b.deliver("h", 2)
        await b.settle()
        first, last = conns[0], conns[-1]
        assert {recv.channel_id for recv in b.outbox.recvs[first]} == {"g", "h"}
        assert b.counts([first, last]) == [2, 2]


async def test_members_that_cannot_be_read_now_are_read_later(autojump_clock: MockClock) -> None:
    async with bench() as b:
        b.groups.uids = ["a", "b"]
        b.groups.broken = 3
        conns = b.online("a", "b")
        sent = [b.deliver("g", 2, conn_id=conns[0]) for _ in range(2)]
        await wait_all_tasks_blocked()
        await b.settle()
        assert [recv.message_id for recv in b.outbox.recvs[conns[1]]] == [
            m.message_id for m in sent
        ]
        assert len(b.delivered) == 2


async def test_a_list_of_recipients_stands_for_the_members() -> None:
    async with bench() as b:
        b.groups.uids = ["c"]
        conns = b.online("a", "b", "c")
        b.deliver("x____cmd", 8, "a", recipients=["a", "b"])
        assert b.counts(conns) == [1, 1, 0]
        many = [f"u{n:04}" for n in range(400)]
        online = b.online(*many)
        b.deliver("y____cmd", 8, "a", recipients=many)
        await b.settle()
        assert b.counts(online) == [1] * 400
