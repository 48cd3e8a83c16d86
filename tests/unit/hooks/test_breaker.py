"""What an open breaker means for messages, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from tests.kit.targets import ManualTarget, ScriptedTarget
from wkhost.errors import ReasonCode
from wkhost.hooks.breaker import DEFAULT_RULES, BreakerState
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.lookup import LoginLookup, LookupAnswer
from wkhost.hooks.passage import Passage
from wkhost.hooks.probe import HEALTH_BUDGET_S
from wkhost.hooks.records import CallRecords
from wkhost.hooks.target import SendCall, SendOrigin
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy
from wkhost.types import Message

BUDGET_S = 1.0
HOLD_S = 30.0


class Bench:
    """A dispatcher and what became of each message."""

    def __init__(self) -> None:
        self.decided: dict[int, float] = {}
        self.refused: dict[int, int] = {}
        self._ids = count(1)
        self.dispatcher = Dispatcher(
            clock=trio.current_time,
            decided=self._decided,
            recheck=lambda passage: None,
            turn_done=lambda: None,
            budget_s=BUDGET_S,
            max_payload_bytes=64,
        )

    def _decided(self, passage: Passage) -> None:
        message_id = passage.message.message_id
        assert message_id not in self.decided
        self.decided[message_id] = trio.current_time()
        if passage.refusal is not None:
            self.refused[message_id] = passage.refusal.code

    def send(self, step: Step) -> int:
        message_id = next(self._ids)
        message = Message(message_id, "g", 2, "u", "", b"{}")
        passage = Passage(message, SendOrigin("client"), Chain(1, send=(step,)))
        if self.dispatcher.begin(passage):
            self._decided(passage)
        return message_id

    async def hang(self, step: Step) -> None:
        """Let the plugin miss as many budgets as open its breaker."""
        for _ in range(DEFAULT_RULES.failures):
            self.send(step)
            await trio.sleep(0.02)
        await trio.sleep(BUDGET_S)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    b = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(b.dispatcher.run)
        yield b
        nursery.cancel_scope.cancel()


def state(target: ManualTarget) -> BreakerState:
    return target.lines["send"].breaker.state


@pytest.mark.parametrize("policy", [Policy.CLOSED, Policy.OPEN])
async def test_an_open_breaker_lets_the_policy_decide_at_once_without_a_call(
    policy: Policy, autojump_clock: MockClock
) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, policy)
        await b.hang(step)
        assert state(target) is BreakerState.OPEN
        calls, now = len(target.calls), trio.current_time()
        message_id = b.send(step)
        assert len(target.calls) == calls
        assert b.decided[message_id] == now
        expected = {} if policy is Policy.OPEN else {message_id: ReasonCode.SYSTEM_ERROR}
        assert {k: v for k, v in b.refused.items() if k == message_id} == expected
        assert target.lines["send"].record.short_circuits == 1


async def test_one_real_message_of_a_closed_hook_is_the_probe(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        await b.hang(step)
        target.calls.clear()
        await trio.sleep(DEFAULT_RULES.pause_s)
        probe, beside = b.send(step), b.send(step)
        assert [target.send_call(i).message.message_id for i in range(len(target.calls))] == [probe]
        assert beside in b.refused
        assert probe not in b.decided
        target.answer(CONTINUE)
        assert state(target) is BreakerState.CLOSED
        assert probe in b.decided
        assert probe not in b.refused
        after = b.send(step)
        assert target.send_call().message.message_id == after


async def test_a_probe_that_fails_doubles_the_pause(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        await b.hang(step)
        pauses = []
        for _ in range(6):
            breaker = target.lines["send"].breaker
            pauses.append(breaker.pause_s)
            await trio.sleep(breaker.pause_s)
            b.send(step)
            target.answer(Failure(Outcome.CRASH), len(target.calls) - 1)
            assert state(target) is BreakerState.OPEN
        assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


async def test_no_message_that_would_be_decided_open_is_ever_the_probe(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.OPEN)
        await b.hang(step)
        target.calls.clear()
        for answer in (None, Failure(Outcome.CRASH), CONTINUE):
            await trio.sleep(target.lines["send"].breaker.pause_s)
            now = trio.current_time()
            for _ in range(3):
                assert b.decided[b.send(step)] == now
            assert target.calls == []
            assert len(target.health_checks) == 1, "asked how it is, once"
            assert state(target) is BreakerState.HALF_OPEN
            reply = target.health_checks.pop()
            if answer is None:
                await trio.sleep(HEALTH_BUDGET_S)
                b.send(step)
                assert state(target) is BreakerState.OPEN, "silence is no health"
                reply(CONTINUE)
                assert state(target) is BreakerState.OPEN, "too late"
            else:
                reply(answer)
        assert state(target) is BreakerState.CLOSED
        b.send(step)
        assert len(target.calls) == 1


async def test_held_messages_wait_for_the_probe_and_leave_in_order(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        healthy = False
        seen: list[int] = []

        def script(call: SendCall) -> object:
            seen.append(call.message.message_id)
            return CONTINUE if healthy else Failure(Outcome.CRASH)

        await trio.sleep(1)  # virtual time begins at 0.0, which means "not parked"
        target = ScriptedTarget("p", b.dispatcher, script)  # type: ignore[arg-type]
        step = Step(target, Policy.HOLD, hold_s=HOLD_S)
        sent = []
        for _ in range(DEFAULT_RULES.failures + 3):
            sent.append(b.send(step))
            await trio.sleep(0.02)
        assert state(target) is BreakerState.OPEN
        assert not b.decided
        await trio.sleep(DEFAULT_RULES.pause_s + 0.1)
        assert state(target) is BreakerState.OPEN, "the first one was tried and failed"
        healthy = True
        seen.clear()
        await trio.sleep(2 * DEFAULT_RULES.pause_s + 0.1)
        assert seen == sent
        assert list(b.decided) == sent
        assert not b.refused


async def test_held_messages_are_asked_within_100_ms_of_a_sign_of_life(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        await trio.sleep(1)
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.HOLD, hold_s=HOLD_S)
        b.dispatcher.set_chain(Chain(1, send=(step,)))
        await b.hang(step)
        late = list(target.calls)
        target.calls.clear()
        for _ in range(3):
            b.send(step)
        assert state(target) is BreakerState.OPEN
        assert target.calls == []
        start = trio.current_time()
        b.dispatcher.answered("p", [(call.call_id, CONTINUE) for call in late])
        while len(b.decided) < DEFAULT_RULES.failures + 3:
            await trio.sleep(0.001)
            while target.calls:
                target.answer(CONTINUE)
        assert trio.current_time() - start <= 0.1
        assert not b.refused


async def test_what_a_dying_process_held_counts_as_one_failure(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        for _ in range(100):
            b.send(step)
        answers = [(call.call_id, Failure(Outcome.CRASH)) for call in target.calls]
        b.dispatcher.answered("p", answers)
        assert len(b.refused) == 100
        assert state(target) is BreakerState.CLOSED


async def test_a_plugin_that_answers_most_calls_keeps_being_asked(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        for n in range(200):
            b.send(step)
            target.answer(Failure(Outcome.CRASH) if n % 4 == 0 else CONTINUE)
            await trio.sleep(0.02)
        assert state(target) is BreakerState.CLOSED


async def test_a_late_verdict_hastens_the_next_probe(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        b.dispatcher.set_chain(Chain(1, send=(step,)))
        await b.hang(step)
        target.answer(CONTINUE)
        target.calls.clear()
        b.send(step)
        assert len(target.calls) == 1, "it is the probe, before the pause is over"


async def test_a_new_generation_starts_with_a_closed_breaker(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.CLOSED)
        await b.hang(step)
        target.calls.clear()
        target.lines = CallRecords().lines("p", "1.0.1", 2)
        b.send(step)
        assert len(target.calls) == 1


async def test_overload_that_opens_it_is_told_as_overload(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        target.room = False
        step = Step(target, Policy.CLOSED)
        for _ in range(DEFAULT_RULES.failures + 1):
            b.send(step)
            await trio.sleep(0.02)
        target.room = True
        message_id = b.send(step)
        assert target.calls == []
        assert b.refused[message_id] == ReasonCode.RATE_LIMIT


async def test_a_closed_login_is_a_probe_and_an_open_look_up_never(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        target = ManualTarget("p", b.dispatcher)
        step = Step(target, Policy.OPEN)
        found: list[LookupAnswer] = []

        def login() -> None:
            b.dispatcher.look_up(
                LoginLookup(
                    (step,),
                    found.append,
                    uid="u",
                    device_flag=0,
                    device_id="d",
                    token="",
                    peer_host="",
                )
            )

        for _ in range(DEFAULT_RULES.failures):
            login()
            await trio.sleep(0.02)
        await trio.sleep(BUDGET_S)
        assert target.lines["user_get"].breaker.state is BreakerState.OPEN
        target.calls.clear()
        login()
        assert isinstance(found[-1], Failure)
        assert target.calls == []
        await trio.sleep(DEFAULT_RULES.pause_s)
        login()
        assert len(target.calls) == 1
        target.answer(CONTINUE)
        assert found[-1] is None
        assert target.lines["user_get"].breaker.closed
