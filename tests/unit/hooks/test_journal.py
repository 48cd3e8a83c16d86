"""The decision journal: who said what, for refused messages too, within bounds, no payload."""

from __future__ import annotations

import gc
import sys

import pytest
import trio
from trio.testing import MockClock

from tests.kit.targets import ManualTarget
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.journal import Heard, Journal
from wkhost.hooks.passage import Passage
from wkhost.hooks.records import CallRecords
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
    assert [h.line.record.no for h in heard] == ["editor", "down", "guard"]
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
    (heard,) = d.journal.find(1)
    assert heard.outcome is None
    target.answer(Failure(Outcome.CRASH, "died"))
    (after,) = d.journal.find(1)
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
    assert len(d.journal) == 400
    assert d.journal.find(400) == []
    assert len(d.journal.find(401)) == len(d.journal.find(500)) == 4


def test_entries_are_small_and_no_work_for_the_collector() -> None:
    line = CallRecords().lines("p", "1.0.0", 1)["send"]
    heard = Heard(1, "client", "u", "g", 2, line, 1.0)
    assert not gc.is_tracked(heard)
    assert sys.getsizeof(heard) <= 128
    assert "payload" not in Heard.__struct_fields__
