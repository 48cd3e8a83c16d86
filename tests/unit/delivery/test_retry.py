"""Retries: overdue messages again, in bounded stretches, while the connection lives."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from trio.testing import MockClock

from tests.kit.kernel import RecordingOutbox
from wkhost.delivery.presence import Pending, Presence, Session
from wkhost.delivery.retry import RETRIES_PER_SLICE, Retries
from wkhost.errors import StoreError
from wkhost.protocol.packets import Recv
from wkhost.types import Flags, Message

INTERVAL_S, SCAN_S, RETRY_MAX = 10.0, 1.0, 3


class History:
    """Implements `HistoryReader`: message_seq is message_id."""

    def __init__(self) -> None:
        self.broken = False
        self.gone: set[int] = set()

    def read_messages(
        self,
        channel_id: str,
        channel_type: int,
        first_seq: int,
        last_seq: int,
        limit: int,
        newest_first: bool = False,
    ) -> list[Message]:
        if self.broken:
            raise StoreError("reopening")
        if first_seq in self.gone:
            return []
        m = Message(
            first_seq, channel_id, channel_type, "a", "", b"x", Flags.RED_DOT, message_seq=first_seq
        )
        return [m]


class Bench:
    def __init__(self) -> None:
        self.outbox = RecordingOutbox()
        self.presence = Presence()
        self.history = History()
        self.retries = Retries(
            self.outbox,
            self.presence,
            self.history,
            trio.current_time,
            interval_s=INTERVAL_S,
            scan_s=SCAN_S,
            retry_max=RETRY_MAX,
        )

    def session(self, conn_id: int, uid: str, messages: int) -> Session:
        session = Session(conn_id, uid, "d", 0, 0, "")
        self.presence.add(session)
        for message_id in range(1, messages + 1):
            session.await_recvack(message_id, Pending("b@a", 1, message_id, trio.current_time()))
        return session


async def test_a_message_is_tried_as_often_as_set_and_then_given_up(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        session = b.session(1, "b", 3)
        await trio.sleep(INTERVAL_S - 1)
        assert not b.outbox.recvs
        await trio.sleep(INTERVAL_S * (RETRY_MAX + 2))
        assert len(b.outbox.recvs[1]) == 3 * RETRY_MAX
        assert not session.pending
        assert (b.retries.retried, b.retries.given_up) == (3 * RETRY_MAX, 3)
        nursery.cancel_scope.cancel()


async def test_the_senders_other_device_gets_its_own_view_again(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        b.session(1, "b", 1)
        b.session(2, "a", 1)
        await trio.sleep(INTERVAL_S + 2)
        assert (b.outbox.recvs[1][0].channel_id, b.outbox.recvs[1][0].flags) == ("a", 2)
        assert (b.outbox.recvs[2][0].channel_id, b.outbox.recvs[2][0].flags) == ("b", 0)
        nursery.cancel_scope.cancel()


async def test_a_store_that_cannot_be_read_costs_no_try(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        b.history.broken = True
        session = b.session(1, "b", 2)
        await trio.sleep(INTERVAL_S * 3)
        assert [entry.tries for entry in session.pending.values()] == [0, 0]
        b.history.broken = False
        await trio.sleep(SCAN_S * 2)
        assert len(b.outbox.recvs[1]) == 2
        nursery.cancel_scope.cancel()


async def test_a_message_that_is_gone_is_forgotten(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        b.history.gone = {1}
        session = b.session(1, "b", 2)
        await trio.sleep(INTERVAL_S + 2)
        assert list(session.pending) == [2]
        nursery.cancel_scope.cancel()


async def test_no_stretch_pushes_more_than_a_slice_over_all_connections(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        between: list[int] = [0]
        plain_recv, plain_flush = b.outbox.recv, b.outbox.flush

        def recv(recv: Recv, conn_ids: Sequence[int]) -> None:
            plain_recv(recv, conn_ids)
            between[-1] += len(conn_ids)

        def flush() -> None:
            plain_flush()
            between.append(0)

        b.outbox.recv, b.outbox.flush = recv, flush  # type: ignore[method-assign]
        for conn_id in range(1, 61):
            b.session(conn_id, f"u{conn_id}", 37)
        b.session(100, "busy", 500)
        await trio.sleep(INTERVAL_S + 2)
        assert b.retries.retried == 60 * 37 + 500
        assert max(between) <= 2 * RETRIES_PER_SLICE
        nursery.cancel_scope.cancel()


async def test_a_connection_that_closes_during_a_scan_gets_nothing_more(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        b = Bench()
        await nursery.start(b.retries.run)
        b.session(1, "b", 2 * RETRIES_PER_SLICE)
        plain = b.outbox.recv

        def recv_and_close(recv: Recv, conn_ids: Sequence[int]) -> None:
            plain(recv, conn_ids)
            b.presence.remove(1)

        b.outbox.recv = recv_and_close  # type: ignore[method-assign]
        await trio.sleep(INTERVAL_S + 2)
        assert len(b.outbox.recvs[1]) <= RETRIES_PER_SLICE
        nursery.cancel_scope.cancel()
