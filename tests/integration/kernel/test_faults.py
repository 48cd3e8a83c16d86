"""Stalls, exhausted ids and odd packets: nothing freezes, nothing leaks, nobody is left waiting."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.kit.kernel import running_kernel
from wkhost.errors import ReasonCode, StoreBusyError, StoreError
from wkhost.kernel.send import JOINED_MAX
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import AddSubscribers, SendMessage, Sent, Subscriber
from wkhost.types import Flags

SUCCESS = ReasonCode.SUCCESS


@pytest.mark.parametrize("payload", [b"", b"x" * 1000])
async def test_a_write_stall_holds_messages_in_bounded_memory_then_refuses_with_22(
    payload: bytes, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    settings = KernelSettings(max_inflight_bytes=100_000)
    async with running_kernel(settings) as k:
        write = k.store._engine.write

        def stalled(rows: object) -> None:
            raise StoreBusyError("behind")

        monkeypatch.setattr(k.store._engine, "write", stalled)
        a, b = k.connect("a"), k.connect("b")
        seqs = [k.send(a, "b", payload) for _ in range(500)]
        await trio.sleep(1)
        send = k.kernel.statistics()["send"]
        assert 90_000 < send["inflight_bytes"] <= 100_000
        refused = list(k.outbox.acks[a])
        assert {ack.reason_code for ack in refused} == {ReasonCode.RATE_LIMIT}
        monkeypatch.setattr(k.store._engine, "write", write)
        await trio.sleep(1)
        await k.settle()
        acks = [await k.ack(a, seq) for seq in seqs]
        accepted = [ack.message_seq for ack in acks if ack.reason_code == SUCCESS]
        assert accepted == list(range(1, 500 - len(refused) + 1))
        assert len(k.received(b)) == len(accepted)
        assert k.kernel.statistics()["send"]["inflight_bytes"] == 0


async def test_message_ids_that_run_out_are_answered_15_and_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_kernel() as k:
        a = k.connect("a")
        ids = k.kernel._doors._ids
        spent = True

        def needs_ceiling() -> bool:
            nonlocal spent
            spent = False
            return True

        plain = ids.next

        class Spent:
            """The real ids, empty until the committer has asked for a new ceiling."""

            def next(self) -> int:
                if spent:
                    raise StoreBusyError("used up")
                return plain()

        monkeypatch.setattr(k.kernel._doors, "_ids", Spent())
        monkeypatch.setattr(type(ids), "needs_ceiling", lambda self: needs_ceiling())
        refused = await k.ack(a, k.send(a, "b"))
        assert (refused.reason_code, refused.message_id) == (ReasonCode.SYSTEM_ERROR, 0)
        await wait_all_tasks_blocked()
        assert not spent, "the committer was told to raise the ceiling though nothing else waits"
        assert (await k.deliver(a, "b")).reason_code == SUCCESS


async def test_members_that_cannot_be_read_at_completion_do_not_end_the_kernel(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with running_kernel() as k:
        await k.change(AddSubscribers("g", 2, [Subscriber("a"), Subscriber("b")]))
        a, b = k.connect("a"), k.connect("b")
        list_members, failures = k.store.list_members, iter([True, True])

        def flaky(*args: object) -> object:
            if next(failures, False):
                raise StoreError("reopening")
            return list_members(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(k.store, "list_members", flaky)
        seqs = [k.send(a, "g", b"%d" % n, channel_type=2) for n in range(3)]
        assert {(await k.ack(a, seq)).reason_code for seq in seqs} == {SUCCESS}
        await trio.sleep(1)
        await k.settle()
        assert [recv.payload for recv in k.received(b)] == [b"0", b"1", b"2"]
        assert k.kernel.statistics()["send"]["inflight_bytes"] == 0


async def test_recvacks_of_unknown_and_negative_ids_change_nothing() -> None:
    async with running_kernel() as k:
        a, b = k.connect("a"), k.connect("b")
        sent = await k.deliver(a, "b")
        for message_id in (0, -1, -(1 << 63), 12345, sent.message_id + 1):
            k.recvack(b, message_id)
        k.recvack(9999, sent.message_id)
        k.recvack(a, sent.message_id)
        assert list(k.kernel.presence.by_conn[b].pending) == [sent.message_id]
        k.recvack(b, sent.message_id)
        k.recvack(b, sent.message_id)
        assert not k.kernel.presence.by_conn[b].pending


async def test_an_answer_that_sends_again_from_inside_keeps_the_order() -> None:
    async with running_kernel() as k:
        b = k.connect("b")
        results: list[Sent] = []

        def done(sent: Sent) -> None:
            results.append(sent)
            if len(results) < 50:
                request = SendMessage("a", "b", 1, b"%d" % len(results))
                k.kernel.service.send_nowait(request, done, door="bot")

        k.kernel.service.send_nowait(SendMessage("a", "b", 1, b"0"), done, door="bot")
        await k.settle_sends(results, 50)
        await k.settle()
        assert [sent.message_seq for sent in results] == list(range(1, 51))
        assert [recv.payload for recv in k.received(b)] == [b"%d" % n for n in range(50)]


async def test_repeats_of_one_message_in_flight_are_bounded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with running_kernel() as k:
        a = k.connect("a")
        write = k.store._engine.write

        def stalled(rows: object) -> None:
            raise StoreBusyError("behind")

        monkeypatch.setattr(k.store._engine, "write", stalled)
        seqs = [k.send(a, "b", client_msg_no="n") for _ in range(JOINED_MAX + 3)]
        refused = [ack.reason_code for ack in k.outbox.acks[a]]
        assert refused == [ReasonCode.RATE_LIMIT] * 2
        monkeypatch.setattr(k.store._engine, "write", write)
        await k.settle()
        assert len(k.outbox.acks[a]) == len(seqs)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (SendMessage("a", "b", 256, b"{}"), ReasonCode.NOT_SUPPORT_CHANNEL_TYPE),
        (SendMessage("a", "b", -1, b"{}"), ReasonCode.NOT_SUPPORT_CHANNEL_TYPE),
        (SendMessage("x@y", "b", 1, b"{}"), ReasonCode.CHANNEL_ID_ERROR),
        (SendMessage("a", "b" * 32_766, 1, b"{}"), ReasonCode.CHANNEL_ID_ERROR),
        (SendMessage("a", "g", 2, b"x" * 600_000), ReasonCode.PAYLOAD_DECODE_ERROR),
    ],
)
async def test_what_other_doors_can_never_send_is_refused_with_a_reason(
    request_: SendMessage, reason: int
) -> None:
    async with running_kernel() as k:
        sent = await k.ask(request_)
        assert isinstance(sent, Sent)
        assert (sent.reason_code, sent.message_seq) == (reason, 0)
        assert sent.reason
        assert k.kernel.statistics()["send"]["inflight_bytes"] == 0


async def test_the_longest_strings_of_the_wire_are_stored_and_delivered() -> None:
    async with running_kernel() as k:
        uid, peer = "a" * 32_767, "b" * 32_767
        a, b = k.connect(uid), k.connect(peer)
        sendack = await k.deliver(a, peer, client_msg_no="n" * 32_767)
        assert sendack.reason_code == SUCCESS
        [recv] = k.received(b)
        assert (recv.from_uid, recv.channel_id) == (uid, uid)
        repeat = await k.deliver(a, peer, client_msg_no="n" * 32_767, flags=Flags.RED_DOT)
        assert repeat.message_id == sendack.message_id
