"""What the kernel says of a message: stored, refused, waiting, passed; and to whom."""

from __future__ import annotations

import trio

from tests.kit.kernel import KernelKit, running_kernel
from tests.kit.targets import ManualTarget
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.verdict import CONTINUE, Policy, Refuse
from wkhost.link.contract import (
    API_WORKER,
    Actor,
    Error,
    ErrorKind,
    ExplainMessage,
    GetMetrics,
    MessageTrail,
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
