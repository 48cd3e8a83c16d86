"""The decision journal: who said what, for refused messages too, within bounds, no payload."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
from trio.testing import MockClock

from tests.kit.targets import ManualTarget
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.journal import Heard, Journal
from wkhost.hooks.passage import Passage
from wkhost.hooks.records import Asked, CallRecords
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse, Replace
from wkhost.types import Message


def dispatcher(journal: Journal | None = None) -> Dispatcher:
    return Dispatcher(
        clock=trio.current_time,
        decided=lambda passage: None,
        recheck=lambda passage: None,
        turn_done=lambda: None,
        budget_s=1.0,
        max_payload_bytes=64,
        journal=journal,
    )


def begin(d: Dispatcher, message_id: int, *steps: Step) -> None:
    message = Message(message_id, "g", 2, "u", "", b'{"secret":1}')
    d.begin(Passage(message, SendOrigin("client"), Chain(1, send=steps)))


async def test_each_step_is_noted_with_its_verdict_time_and_policy(
    autojump_clock: MockClock,
) -> None:
    d = dispatcher()
    editor, down, guard = (ManualTarget(no, d) for no in ("editor", "down", "guard"))
    down.ready = False
    steps = (
        Step(editor, Policy.CLOSED),
        Step(down, Policy.OPEN),
        Step(guard, Policy.CLOSED),
    )
    begin(d, 7, *steps)
    begin(d, 8, Step(guard, Policy.CLOSED))
    await trio.sleep(0.25)
    editor.answer(Replace(b'{"a":1}'))
    guard.answer(CONTINUE, 0)
    await trio.sleep(0.25)
    guard.answer(Refuse(200, "no"))
    heard = d.journal.find(7)
    assert [h.plugin for h in heard] == [
        Asked(no, "1.0.0", 1) for no in ("editor", "down", "guard")
    ]
    assert [h.outcome for h in heard] == [Outcome.REPLACE, Outcome.CRASH, Outcome.REFUSE]
    assert [h.policy for h in heard] == [None, Policy.OPEN, None]
    assert [(h.code, h.text) for h in (heard[0], heard[2])] == [(0, ""), (200, "no")]
    assert heard[0].answered_at - heard[0].called_at == pytest.approx(0.25)
    assert heard[1].called_at == 0.0
    assert (heard[0].door, heard[0].from_uid, heard[0].channel_id) == ("client", "u", "g")
    assert [h.outcome for h in d.journal.find(8)] == [Outcome.CONTINUE]


async def test_a_message_that_concerns_no_plugin_is_not_noted() -> None:
    d = dispatcher()
    begin(d, 1, Step(ManualTarget("p", d), Policy.CLOSED, matches=lambda message: False))
    assert len(d.journal) == 0


async def test_a_message_that_waits_is_seen_waiting() -> None:
    d = dispatcher()
    target = ManualTarget("p", d)
    begin(d, 1, Step(target, Policy.CLOSED))
    (heard,) = d.heard_of(1)
    assert (heard.outcome, heard.parked, heard.plugin) == (None, False, Asked("p", "1.0.0", 1))
    target.answer(Failure(Outcome.CRASH, "died"))
    (after,) = d.heard_of(1)
    assert (after.outcome, after.policy, after.code) == (Outcome.CRASH, Policy.CLOSED, 15)
    assert after.text == "died"


async def test_the_journal_is_bounded_and_holds_about_as_many_messages_whatever_the_chain() -> None:
    d = dispatcher(Journal(100))
    targets = [ManualTarget(f"p{n}", d) for n in range(4)]
    chain = Chain(1, send=tuple(Step(target, Policy.CLOSED) for target in targets))
    d.set_chain(chain)
    for message_id in range(1, 501):
        begin(d, message_id, *chain.send)
        for target in targets:
            target.answer(CONTINUE)
        assert len(d.journal) <= 400 + 2 * 400 // 8
    assert len(d.journal) >= 400
    assert d.journal.find(350) == []
    assert len(d.journal.find(401)) == len(d.journal.find(500)) == 4


async def test_one_message_is_found_among_all_whatever_stands_beside_it() -> None:
    d = dispatcher(Journal(64))
    target = ManualTarget("p", d)
    for message_id in range(1, 65):
        begin(d, message_id, Step(target, Policy.CLOSED))
        target.answer(CONTINUE if message_id % 3 else Refuse(message_id, "no"))
        d.journal.refused(1000 + message_id, "http", "u", ("g", 2), 5.0, 19, "")
    for message_id in range(33, 65):
        (heard,) = d.journal.find(message_id)
        assert (heard.message_id, heard.code) == (message_id, 0 if message_id % 3 else message_id)
        (own,) = d.journal.find(1000 + message_id)
        assert (own.plugin, own.code, own.door, own.channel_id) == (None, 19, "http", "g")


async def test_a_parked_message_is_shown_parked_and_then_what_became_of_it(
    autojump_clock: MockClock,
) -> None:
    d = dispatcher()
    target = ManualTarget("p", d)
    target.ready = False
    async with trio.open_nursery() as nursery:
        await nursery.start(d.run)
        begin(d, 1, Step(target, Policy.HOLD, hold_s=5.0))
        (heard,) = d.heard_of(1)
        assert (heard.outcome, heard.policy, heard.parked) == (Outcome.CRASH, Policy.HOLD, True)
        target.ready = True
        await trio.sleep(0.5)
        was, now = d.heard_of(1)
        assert (was.outcome, was.policy, was.parked) == (Outcome.CRASH, Policy.HOLD, False)
        assert now.outcome is None
        target.answer(CONTINUE)
        assert [h.outcome for h in d.heard_of(1)] == [Outcome.CRASH, Outcome.CONTINUE]
        target.ready = False
        begin(d, 2, Step(target, Policy.HOLD, hold_s=5.0))
        await trio.sleep(6)
        (late,) = d.heard_of(2)
        assert (late.code, late.policy) == (15, Policy.HOLD)
        assert late.text.startswith("held too long")
        nursery.cancel_scope.cancel()


async def test_a_call_that_goes_to_another_generation_counts_for_the_one_that_answers() -> None:
    d = dispatcher()
    target = ManualTarget("p", d)
    old = target.lines
    begin(d, 1, Step(target, Policy.CLOSED))
    new = CallRecords().lines("p", "2.0.0", 2)
    d.moved(new, [target.send_call().call_id, 12345])
    target.answer(CONTINUE)
    assert (old["send"].record.verdicts, new["send"].record.verdicts) == (0, 1)
    (heard,) = d.journal.find(1)
    assert heard.plugin == Asked("p", "2.0.0", 2)


def test_an_entry_takes_about_a_hundred_bytes_and_no_work_of_the_collector() -> None:
    """In a journal that is full; short names as clients use them."""
    entries = 10_000
    line = CallRecords().lines("moderation", "1.0.0", 7)["send"]
    journal = Journal(entries)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(entries):
            m = Message(n + (1 << 61), f"user{n}@user{n + 1}", 1, f"user{n}", "", b"payload")
            passage = Passage(m, SendOrigin("client"), Chain())
            passage.line = line
            passage.called_at = n + 0.1
            journal.note(passage, n + 0.2, Outcome.CONTINUE)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(journal) == entries
    assert taken / entries < 110
    assert "payload" not in Heard.__struct_fields__
