"""What the kernel says of a message: stored, refused, waiting, passed; and to whom."""

from __future__ import annotations

import trio

from tests.kit.kernel import KernelKit, running_kernel
from tests.kit.targets import ManualTarget
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.verdict import CONTINUE, Policy, Refuse
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import (
    API_WORKER,
    Actor,
    AddToDenylist,
    Error,
    ErrorKind,
    ExplainMessage,
    GetMetrics,
    MessageTrail,
    SetChannel,
)
from wkhost.types import Flags


async def explain(kit: KernelKit, message_id: int) -> MessageTrail:
    trail = await kit.ask(ExplainMessage(message_id))
    assert isinstance(trail, MessageTrail), trail
    return trail


async def test_each_fate_is_told_with_who_decided_it() -> None:
    async with running_kernel() as kit:
        target = ManualTarget("guard", kit.kernel)
        kit.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        conn = kit.connect("alice")
        kit.send(conn, "bob")
        waiting = target.send_call().message.message_id
        trail = await explain(kit, waiting)
        assert (trail.fate, trail.from_uid, trail.door) == ("waiting", "alice", "client")
        assert [d.outcome for d in trail.decisions] == [""]

        target.answer(CONTINUE)
        await kit.settle()
        trail = await explain(kit, waiting)
        assert (trail.fate, trail.message_seq, trail.channel_type) == ("stored", 1, 1)
        assert [(d.no, d.outcome, d.asked) for d in trail.decisions] == [
            ("guard", "continue", True)
        ]

        seq = kit.send(conn, "bob")
        target.answer(Refuse(77, "not today"))
        sendack = await kit.ack(conn, seq)
        trail = await explain(kit, sendack.message_id)
        assert (trail.fate, trail.reason_code, trail.reason) == ("refused", 77, "not today")
        assert trail.message_seq == 0

        target.ready = False
        sendack = await kit.ack(conn, kit.send(conn, "bob"))
        trail = await explain(kit, sendack.message_id)
        (decision,) = trail.decisions
        assert (trail.fate, trail.reason_code) == ("refused", 15)
        assert (decision.asked, decision.policy, decision.took_s) == (False, "closed", 0.0)

        target.ready = True
        seq = kit.send(conn, "bob", flags=int(Flags.NO_PERSIST))
        target.answer(CONTINUE)
        sendack = await kit.ack(conn, seq)
        await kit.settle()
        assert (await explain(kit, sendack.message_id)).fate == "passed"
        assert (await explain(kit, 5)).fate == "unknown"


async def test_a_message_that_no_plugin_saw_is_known_from_the_store() -> None:
    async with running_kernel() as kit:
        conn = kit.connect("alice")
        sendack = await kit.deliver(conn, "bob")
        trail = await explain(kit, sendack.message_id)
        assert (trail.fate, trail.door, trail.decisions) == ("stored", "", [])


async def test_only_an_operator_may_ask_why_and_anyone_may_scrape() -> None:
    async with running_kernel() as kit:
        worker = Actor(API_WORKER, 0, 0)
        answer = await kit.kernel.service.handle(ExplainMessage(1), worker)
        assert isinstance(answer, Error)
        assert answer.kind is ErrorKind.FORBIDDEN
        answer = await kit.kernel.service.handle(GetMetrics(), worker)
        assert isinstance(answer, Error)
        assert answer.kind is ErrorKind.INVALID, "nothing gathers them in this kernel"
        await trio.lowlevel.checkpoint()


async def test_what_the_server_itself_refuses_is_told_with_the_rule() -> None:
    """No plugin was asked: permissions and limits come first."""
    settings = KernelSettings(max_payload_bytes=1000, max_inflight_bytes=4096)
    async with running_kernel(settings) as kit:
        target = ManualTarget("guard", kit.kernel)
        kit.kernel.chain_changed(Chain(1, send=(Step(target, Policy.CLOSED),)))
        await kit.change(SetChannel("closed", 2, ban=True))
        await kit.change(AddToDenylist("club", 2, ["bob"]))
        await kit.change(AddToDenylist("carol", 1, ["bob"]))
        alice, bob = kit.connect("alice"), kit.connect("bob")
        cases = [
            (alice, "closed", 2, b"x", 19, "the channel is banned"),
            (bob, "club", 2, b"x", 4, "the sender is on the deny list"),
            (bob, "carol", 1, b"x", 4, "the sender is on the deny list"),
            (alice, "strange", 2, b"x", 3, "the sender is not a subscriber"),
            (alice, "bob", 1, b"x" * 1001, 9, "payload too large"),
        ]
        for conn, channel, channel_type, payload, code, text in cases:
            seq = kit.send(conn, channel, payload, channel_type=channel_type)
            sendack = await kit.ack(conn, seq)
            assert sendack.reason_code == code
            trail = await explain(kit, sendack.message_id)
            assert (trail.fate, trail.reason_code, trail.decisions) == ("refused", code, [])
            assert trail.reason.startswith(text)
            assert (trail.door, trail.from_uid) == ("client", "alice" if conn == alice else "bob")
            assert channel in trail.channel_id
        assert target.calls == []

        seqs = [kit.send(alice, "bob", b"x" * 1000) for _ in range(4)]
        sendack = await kit.ack(alice, seqs[-1])
        trail = await explain(kit, sendack.message_id)
        assert (trail.fate, trail.reason_code) == ("refused", 22)
        assert trail.reason == "the server is overloaded"
