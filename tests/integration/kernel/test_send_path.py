"""From SEND to SENDACK and RECV, over the memory store and a recording outbox."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.kit.kernel import running_kernel
from tests.kit.targets import ManualTarget, ScriptedTarget
from wkhost.errors import ReasonCode, StoreError
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.target import ChannelAnswer, SendCall, UserAnswer
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse, Replace
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import (
    AddSubscribers,
    AddToDenylist,
    MessagePage,
    SendMessage,
    Sent,
    Subscriber,
    SyncMessages,
)
from wkhost.types import Flags

SUCCESS = ReasonCode.SUCCESS


async def test_a_person_message_reaches_the_peer_and_the_senders_other_devices() -> None:
    async with running_kernel() as k:
        a1, a2, b = k.connect("a"), k.connect("a", device_flag=1), k.connect("b")
        sendack = await k.deliver(a1, "b", payload=b"hi", flags=Flags.RED_DOT)
        assert (sendack.reason_code, sendack.message_seq) == (SUCCESS, 1)
        [to_b] = k.received(b)
        assert (to_b.from_uid, to_b.channel_id, to_b.payload) == ("a", "a", b"hi")
        assert to_b.flags == Flags.RED_DOT
        [to_a2] = k.received(a2)
        assert (to_a2.from_uid, to_a2.channel_id, to_a2.flags) == ("a", "b", 0)
        assert not k.received(a1), "the sending connection shows its own message already"
        assert to_b.message_id == to_a2.message_id == sendack.message_id


async def test_a_chat_with_oneself_is_delivered_once_to_each_other_device() -> None:
    async with running_kernel() as k:
        a1, a2 = k.connect("a"), k.connect("a", device_flag=1)
        await k.deliver(a1, "a")
        assert len(k.received(a2)) == 1
        assert not k.received(a1)


async def test_message_seq_is_gap_free_and_shared_by_both_sides() -> None:
    async with running_kernel() as k:
        a, b = k.connect("a"), k.connect("b")
        seqs = []
        for i in range(6):
            conn, peer = ((a, "b"), (b, "a"))[i % 2]
            seqs.append((await k.deliver(conn, peer)).message_seq)
        assert seqs == [1, 2, 3, 4, 5, 6]


async def test_a_refused_message_takes_no_number_and_its_repeat_may_succeed() -> None:
    async with running_kernel() as k:
        a = k.connect("a")
        refused = await k.deliver(a, "g", channel_type=2, client_msg_no="n1")
        assert refused.reason_code == ReasonCode.SUBSCRIBER_NOT_EXIST
        assert refused.message_id > 0
        assert refused.message_seq == 0
        await k.change(AddSubscribers("g", 2, [Subscriber("a")]))
        accepted = await k.deliver(a, "g", channel_type=2, client_msg_no="n1")
        assert (accepted.reason_code, accepted.message_seq) == (SUCCESS, 1)


async def test_a_repeat_gets_the_first_ids_and_is_neither_stored_nor_delivered_again() -> None:
    async with running_kernel() as k:
        a, b = k.connect("a"), k.connect("b")
        first = await k.deliver(a, "b", client_msg_no="n1", payload=b"one")
        again = k.connect("a")
        repeat = await k.deliver(again, "b", client_msg_no="n1", payload=b"other")
        assert (repeat.message_id, repeat.message_seq) == (first.message_id, first.message_seq)
        assert repeat.reason_code == SUCCESS
        assert len(k.received(b)) == 1
        page = await k.ask(SyncMessages("a", "b", 1, limit=10))
        assert isinstance(page, MessagePage)
        assert [m.payload for m in page.messages] == [b"one"]


async def test_a_repeat_of_a_message_in_flight_joins_it_and_hooks_are_called_once() -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a, b = k.connect("a"), k.connect("b")
        seqs = [k.send(a, "b", client_msg_no="n1") for _ in range(3)]
        assert len(target.calls) == 1
        target.answer(CONTINUE)
        acks = [await k.ack(a, seq) for seq in seqs]
        assert len({(ack.message_id, ack.message_seq) for ack in acks}) == 1
        await k.settle()
        assert len(k.received(b)) == 1


async def test_a_repeat_in_flight_shares_a_refusal_too() -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a = k.connect("a")
        seqs = [k.send(a, "b", client_msg_no="n1") for _ in range(2)]
        target.answer(Refuse(42, "no"))
        assert [(await k.ack(a, seq)).reason_code for seq in seqs] == [42, 42]


async def test_no_persist_is_delivered_without_a_number_and_remembered(
    autojump_clock: MockClock,
) -> None:
    async with running_kernel() as k:
        a, b = k.connect("a"), k.connect("b")
        first = await k.deliver(a, "b", flags=Flags.NO_PERSIST, client_msg_no="n1")
        assert (first.reason_code, first.message_seq) == (SUCCESS, 0)
        repeat = await k.deliver(a, "b", flags=Flags.NO_PERSIST, client_msg_no="n1")
        assert repeat.message_id == first.message_id
        assert len(k.received(b)) == 1
        assert k.store.last_log_pos() == 0
        await trio.sleep(121)
        await k.deliver(a, "b", flags=Flags.NO_PERSIST, client_msg_no="n1")
        assert len(k.received(b)) == 2


async def test_order_holds_in_a_lane_whatever_order_the_verdicts_come_in() -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a, b = k.connect("a"), k.connect("b")
        for i in range(5):
            k.send(a, "b", b"%d" % i)
        for index in (4, 1, 2, 0, 0):
            answer = Refuse(50) if target.send_call(index).message.payload == b"2" else CONTINUE
            target.answer(answer, index)
        await k.settle()
        assert [recv.payload for recv in k.received(b)] == [b"0", b"1", b"3", b"4"]
        assert [recv.message_seq for recv in k.received(b)] == [1, 2, 3, 4]


async def test_a_slow_verdict_holds_back_only_its_own_lane() -> None:
    def only_slow(call: SendCall) -> object:
        return None if call.message.payload == b"slow" else CONTINUE

    async with running_kernel() as k:
        target = ScriptedTarget("p", k.kernel, only_slow)  # type: ignore[arg-type]
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a, b, c = k.connect("a"), k.connect("b"), k.connect("c")
        k.send(a, "b", b"slow")
        behind = k.send(a, "b", b"behind")
        other = await k.ack(a, k.send(a, "c", b"other channel"))
        assert other.reason_code == SUCCESS
        back = await k.ack(b, k.send(b, "a", b"other sender, same channel"))
        assert (back.reason_code, back.message_seq) == (SUCCESS, 1)
        assert not any(ack.client_seq == behind for ack in k.outbox.acks[a])
        target.answer(CONTINUE)
        assert (await k.ack(a, behind)).message_seq == 3
        await k.settle()
        assert [recv.payload for recv in k.received(c)] == [b"other channel"]


async def test_a_plugin_that_sends_from_its_own_handler_does_not_wait_for_itself() -> None:
    async with running_kernel() as k:
        target = ManualTarget("bot", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a = k.connect("a")
        seq = k.send(a, "b", b"question")
        results: list[Sent] = []
        k.kernel.service.send_nowait(
            SendMessage("a", "b", 1, b"from the handler"), results.append, door="bot"
        )
        target.answer(CONTINUE, 1)
        await k.settle_sends(results, 1)
        assert results[0].reason_code == SUCCESS
        target.answer(CONTINUE)
        assert (await k.ack(a, seq)).message_seq == 2


async def test_a_replaced_payload_is_stored_and_delivered_and_a_refusal_is_final() -> None:
    def verdict(call: SendCall) -> object:
        if call.message.payload == b'"bad"':
            return Refuse(99, "bad word")
        return Replace(b'"masked"')

    async with running_kernel() as k:
        target = ScriptedTarget("p", k.kernel, verdict)  # type: ignore[arg-type]
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a, b = k.connect("a"), k.connect("b")
        sendack = await k.deliver(a, "b", payload=b'"bad"')
        assert (sendack.reason_code, sendack.text, sendack.message_seq) == (99, "bad word", 0)
        await k.deliver(a, "b", payload=b'"ok"')
        assert [recv.payload for recv in k.received(b)] == [b'"masked"']
        assert k.kernel.statistics()["send"]["inflight_bytes"] == 0


async def test_http_and_client_sends_pass_the_same_chain_once() -> None:
    async with running_kernel() as k:
        seen: list[str] = []

        def note_door(call: SendCall) -> object:
            seen.append(call.origin.door)
            return CONTINUE

        target = ScriptedTarget("p", k.kernel, note_door)  # type: ignore[arg-type]
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a = k.connect("a")
        await k.deliver(a, "b")
        sent = await k.ask(SendMessage("a", "b", 1, b"{}"))
        assert isinstance(sent, Sent)
        assert sent.message_seq == 2
        assert seen == ["client", "http"]


async def test_commands_sent_by_http_live_in_the_channels_twin() -> None:
    async with running_kernel() as k:
        b = k.connect("b")
        sent = await k.ask(SendMessage("a", "b", 1, b"{}", flags=Flags.SYNC_ONCE))
        assert isinstance(sent, Sent)
        await k.settle()
        [recv] = k.received(b)
        assert (recv.channel_id, recv.flags) == ("a", Flags.SYNC_ONCE)
        stored = k.store.message_by_id(sent.message_id)
        assert stored is not None
        assert stored.channel_id.endswith("____cmd")
        assert stored.message_seq == 1


async def test_a_send_to_a_list_of_uids_reaches_exactly_these() -> None:
    async with running_kernel() as k:
        a, b, c = k.connect("a"), k.connect("b"), k.connect("c")
        request = SendMessage("", "", 0, b"{}", flags=Flags.SYNC_ONCE, subscribers=["a", "b", "a"])
        sent = await k.ask(request)
        assert isinstance(sent, Sent)
        await k.settle()
        assert [len(k.received(conn)) for conn in (a, b, c)] == [1, 1, 0]
        assert k.received(a)[0].from_uid == ""


async def test_the_group_is_served_at_send_time_and_large_groups_in_order() -> None:
    async with running_kernel() as k:
        uids = [f"u{i:04}" for i in range(700)]
        await k.change(AddSubscribers("g", 2, [Subscriber(uid) for uid in uids]))
        conns = [k.connect(uid) for uid in uids[:300]]
        for i in range(4):
            k.send(conns[0], "g", b"%d" % i, channel_type=2)
        await k.settle()
        for conn in conns[1:]:
            assert [recv.payload for recv in k.received(conn)] == [b"0", b"1", b"2", b"3"]
        assert not k.received(conns[0])


async def test_removing_and_denying_members_holds_from_the_next_message() -> None:
    async with running_kernel() as k:
        await k.change(AddSubscribers("g", 2, [Subscriber("a"), Subscriber("b")]))
        a = k.connect("a")
        assert (await k.deliver(a, "g", channel_type=2)).reason_code == SUCCESS
        await k.change(AddToDenylist("g", 2, ["a"]))
        refused = await k.deliver(a, "g", channel_type=2)
        assert refused.reason_code == ReasonCode.IN_BLACKLIST


async def test_unacknowledged_messages_are_pushed_again_and_given_up(
    autojump_clock: MockClock,
) -> None:
    settings = KernelSettings(retry_interval_s=10, retry_scan_s=5, retry_max=2)
    async with running_kernel(settings) as k:
        a, b = k.connect("a"), k.connect("b")
        kept = await k.deliver(a, "b", payload=b"kept")
        acked = await k.deliver(a, "b", payload=b"acked")
        k.recvack(b, acked.message_id)
        await trio.sleep(100)
        again = [recv for recv in k.received(b) if recv.message_id == kept.message_id]
        assert len(again) == 3, "pushed once and tried twice more"
        assert again[0] == again[1] == again[2]
        assert sum(recv.message_id == acked.message_id for recv in k.received(b)) == 1


async def test_a_recvack_with_no_persist_does_not_count(autojump_clock: MockClock) -> None:
    settings = KernelSettings(retry_interval_s=10, retry_scan_s=5, retry_max=1)
    async with running_kernel(settings) as k:
        a, b = k.connect("a"), k.connect("b")
        sent = await k.deliver(a, "b")
        k.recvack(b, sent.message_id, Flags.NO_PERSIST)
        await trio.sleep(20)
        assert len(k.received(b)) == 2


async def test_a_failed_commit_is_answered_15_and_nothing_of_it_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_kernel() as k:
        a, b = k.connect("a"), k.connect("b")
        assert (await k.deliver(a, "b", client_msg_no="n0")).message_seq == 1
        sync = k.store.sync

        async def failing() -> None:
            k.store._fail()
            raise StoreError("the disk is on fire")

        monkeypatch.setattr(k.store, "sync", failing)
        acks = [await k.ack(a, k.send(a, "b", client_msg_no=f"n{i}")) for i in (1, 2)]
        monkeypatch.setattr(k.store, "sync", sync)
        assert [ack.reason_code for ack in acks] == [ReasonCode.SYSTEM_ERROR] * 2
        assert [ack.message_seq for ack in acks] == [0, 0]
        await k.until_healthy()
        again = await k.deliver(a, "b", client_msg_no="n1")
        assert (again.reason_code, again.message_seq) == (SUCCESS, 2)
        assert [recv.message_seq for recv in k.received(b)] == [1, 2]
        assert k.kernel.statistics()["send"]["inflight_bytes"] == 0


async def test_too_much_in_flight_is_refused_with_22_and_nothing_leaks() -> None:
    settings = KernelSettings(max_inflight_bytes_per_connection=1500)
    async with running_kernel(settings) as k:
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a = k.connect("a")
        first = k.send(a, "b", b"x" * 900)
        second = k.send(a, "c", b"x" * 200)
        assert (await k.ack(a, second)).reason_code == ReasonCode.RATE_LIMIT
        target.answer(CONTINUE)
        assert (await k.ack(a, first)).reason_code == SUCCESS
        await k.settle()
        third = k.send(a, "c", b"x" * 900)
        target.answer(CONTINUE)
        assert (await k.ack(a, third)).reason_code == SUCCESS


async def test_channel_get_overrides_are_asked_once_for_many_and_cached(
    autojump_clock: MockClock,
) -> None:
    async with running_kernel() as k:
        await k.change(AddSubscribers("g", 2, [Subscriber("a"), Subscriber("b")]))
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, channel_get=(Step(target, Policy.OPEN),)))
        a, b = k.connect("a"), k.connect("b")
        waiting = [k.send(a, "g", channel_type=2), k.send(a, "g", channel_type=2)]
        other = k.send(b, "g", channel_type=2)
        assert len(target.calls) == 1, "single flight"
        target.answer(ChannelAnswer(ban=True, ttl_s=3))
        for conn, seq in ((a, waiting[0]), (a, waiting[1]), (b, other)):
            assert (await k.ack(conn, seq)).reason_code == ReasonCode.BAN
        assert (await k.deliver(a, "g", channel_type=2)).reason_code == ReasonCode.BAN
        assert not target.calls, "answered from the cache"
        await trio.sleep(3.1)
        late = k.send(a, "g", channel_type=2)
        target.answer(CONTINUE)
        assert (await k.ack(a, late)).reason_code == SUCCESS


async def test_a_failed_look_up_decides_by_its_policy() -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        a = k.connect("a")
        for policy, reason in (
            (Policy.OPEN, SUCCESS),
            (Policy.CLOSED, ReasonCode.SYSTEM_ERROR),
        ):
            k.kernel.chain_changed(Chain(1, channel_get=(Step(target, policy),)))
            seq = k.send(a, "b")
            target.answer(Failure(Outcome.CRASH))
            assert (await k.ack(a, seq)).reason_code == reason


async def test_user_get_can_ban_a_sender(autojump_clock: MockClock) -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        a = k.connect("a")
        k.kernel.chain_changed(Chain(1, user_get=(Step(target, Policy.OPEN),)))
        seq = k.send(a, "b")
        target.answer(UserAnswer(send_ban=True))
        assert (await k.ack(a, seq)).reason_code == ReasonCode.SEND_BAN


async def test_a_message_survives_its_senders_disconnect() -> None:
    async with running_kernel() as k:
        target = ManualTarget("p", k.kernel)
        k.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        a, b = k.connect("a"), k.connect("b")
        k.send(a, "b", b"parting words")
        k.kernel.closed([a])
        target.answer(CONTINUE)
        await k.settle()
        assert [recv.payload for recv in k.received(b)] == [b"parting words"]


async def test_undecodable_and_too_large_payloads_are_refused_with_9() -> None:
    async with running_kernel(KernelSettings(max_payload_bytes=100)) as k:
        a = k.connect("a")
        large = await k.deliver(a, "b", payload=b"x" * 101)
        assert large.reason_code == ReasonCode.PAYLOAD_DECODE_ERROR
        assert large.message_id > 0
        undecodable = k.send(a, "b", None)  # type: ignore[arg-type]
        assert (await k.ack(a, undecodable)).reason_code == ReasonCode.PAYLOAD_DECODE_ERROR
