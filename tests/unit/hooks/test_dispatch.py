"""The rules of the send chain that are easy to get wrong, one test each."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.kit.targets import ManualTarget, ScriptedTarget
from wkhost.errors import ReasonCode
from wkhost.hooks import held
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.dispatch import TIMER_SLICE, Dispatcher
from wkhost.hooks.held import HOLD_POLL_S
from wkhost.hooks.lookup import ChannelLookup, LoginLookup, LookupAnswer, LookupCall, UserLookup
from wkhost.hooks.passage import Passage
from wkhost.hooks.target import ChannelAnswer, SendOrigin, UserAnswer
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse, Replace
from wkhost.types import Message

BUDGET_S = 1.0
MAX_PAYLOAD_BYTES = 64
CRASH = Failure(Outcome.CRASH, "died")


class Bench:
    """A dispatcher and what became of each message."""

    def __init__(self) -> None:
        self.decided: list[Passage] = []
        self.refuse_on_release: Refuse | None = None
        self.turns = 0
        self.dispatcher = Dispatcher(
            clock=trio.current_time,
            decided=self.decided.append,
            recheck=lambda passage: self.refuse_on_release,
            turn_done=self._turn_done,
            budget_s=BUDGET_S,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
        )

    def _turn_done(self) -> None:
        self.turns += 1

    def target(self, no: str = "p") -> ManualTarget:
        return ManualTarget(no, self.dispatcher)

    def begin(self, *steps: Step, payload: bytes = b'{"n":0}', message_id: int = 1) -> Passage:
        message = Message(message_id, "g", 2, "u", "", payload)
        passage = Passage(message, SendOrigin("client"), Chain(1, send=steps))
        if self.dispatcher.begin(passage):
            self.decided.append(passage)
        return passage

    def counts(self) -> dict[str, int]:
        statistics = self.dispatcher.statistics()
        held = statistics["held"]
        assert isinstance(held, dict)
        return {"open": int(str(statistics["open_calls"])), "held": sum(held.values())}


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    b = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(b.dispatcher.run)
        yield b
        nursery.cancel_scope.cancel()


def code(passage: Passage) -> int:
    return passage.refusal.code if passage.refusal else ReasonCode.SUCCESS


# --- replaced payloads -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "replaced", "fits"),
    [
        (b'{"a":1}', b'{"b":2}', True),
        (b'{"a":1}', b"[]", True),
        (b'{"a":1}', b"plain", False),
        (b'{"a":1}', b"", False),
        (b'{"a":1}', b'{"a":1} x', False),
        (b'{"a":1}', b'"\xff"', False),
        (b"plain", b"other", True),
        (b"plain", b"", True),
        (b"plain", b"{}", True),
        (b"plain", b"x" * MAX_PAYLOAD_BYTES, True),
        (b"plain", b"x" * (MAX_PAYLOAD_BYTES + 1), False),
        (b"7", b"8", True),
    ],
)
async def test_a_replaced_payload_is_checked_again_and_a_violation_counts_as_crash(
    original: bytes, replaced: bytes, fits: bool
) -> None:
    async with bench() as b:
        target = b.target()
        passage = b.begin(Step(target, Policy.CLOSED), payload=original)
        target.answer(Replace(replaced))
        assert b.decided == [passage]
        if fits:
            assert code(passage) == ReasonCode.SUCCESS
            assert passage.message.payload == replaced
        else:
            assert code(passage) == ReasonCode.SYSTEM_ERROR
            assert passage.message.payload == original
        outcome = Outcome.REPLACE if fits else Outcome.CRASH
        assert {o: n for o, n in target.lines["send"].record.outcomes.items() if n} == {outcome: 1}


async def test_every_plugin_of_the_chain_is_checked_not_only_the_last() -> None:
    async with bench() as b:
        first, second = b.target("first"), b.target("second")
        passage = b.begin(Step(first, Policy.OPEN), Step(second, Policy.CLOSED))
        first.answer(Replace(b"not json"))
        assert second.send_call().message.payload == b'{"n":0}'
        second.answer(Replace(b'{"n":2}'))
        assert passage.message.payload == b'{"n":2}'


# --- policies --------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [CRASH, Failure(Outcome.OVERLOAD), "timeout", "full", "down"])
async def test_fail_open_keeps_earlier_edits(
    failure: Failure | str, autojump_clock: MockClock
) -> None:
    async with bench() as b:
        editor, broken, last = b.target("editor"), b.target("broken"), b.target("last")
        broken.room = failure != "full"
        broken.ready = failure != "down"
        steps = [Step(editor, Policy.CLOSED), Step(broken, Policy.OPEN)]
        if failure != "timeout":
            steps.append(Step(last, Policy.CLOSED))
        passage = b.begin(*steps)
        editor.answer(Replace(b'{"edited":1}'))
        if isinstance(failure, Failure):
            broken.answer(failure)
        await trio.sleep(BUDGET_S / 2)
        if failure == "timeout":
            await trio.sleep(BUDGET_S)
        else:
            assert last.send_call().message.payload == b'{"edited":1}'
            last.answer(CONTINUE)
        assert b.decided == [passage]
        assert code(passage) == ReasonCode.SUCCESS
        assert passage.message.payload == b'{"edited":1}'


async def test_silence_is_never_consent_also_after_an_open_step_used_up_the_budget(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        slow, guard = b.target("slow"), b.target("guard")
        passage = b.begin(Step(slow, Policy.OPEN), Step(guard, Policy.CLOSED))
        await trio.sleep(BUDGET_S * 1.01)
        assert b.decided == [passage]
        assert code(passage) == ReasonCode.SYSTEM_ERROR
        assert not guard.calls, "there is no time left in which it could answer"
        assert b.counts() == {"open": 0, "held": 0}


async def test_a_refusal_ends_the_chain_and_is_final() -> None:
    async with bench() as b:
        first, second = b.target("first"), b.target("second")
        passage = b.begin(Step(first, Policy.OPEN), Step(second, Policy.CLOSED))
        call_id = first.calls[0].call_id
        first.answer(Refuse(77, "no"))
        b.dispatcher.answered("first", [(call_id, CONTINUE)])
        assert (b.decided, code(passage), second.calls) == ([passage], 77, [])
        assert b.dispatcher.late_verdicts == {"first": 1}


@pytest.mark.parametrize("answer", [ChannelAnswer(ban=True), UserAnswer(ban=True)])
async def test_an_answer_of_another_hook_counts_as_crash(
    answer: ChannelAnswer | UserAnswer,
) -> None:
    async with bench() as b:
        target = b.target()
        passage = b.begin(Step(target, Policy.CLOSED))
        target.answer(answer)
        assert code(passage) == ReasonCode.SYSTEM_ERROR


async def test_an_answer_from_inside_submit_is_as_good_as_a_later_one() -> None:
    async with bench() as b:
        echo = ScriptedTarget("echo", b.dispatcher, lambda call: CONTINUE)
        edit = ScriptedTarget("edit", b.dispatcher, lambda call: Replace(b'{"n":1}'))
        died = ScriptedTarget("died", b.dispatcher, lambda call: CRASH)
        last = b.target("last")
        open_steps = [Step(echo, Policy.CLOSED), Step(edit, Policy.CLOSED), Step(died, Policy.OPEN)]
        passage = b.begin(*open_steps, Step(last, Policy.CLOSED))
        assert not b.decided
        last.answer(CONTINUE)
        closed = b.begin(*open_steps, Step(died, Policy.CLOSED), message_id=2)
        through = b.begin(*open_steps, message_id=3)
        assert [p.message.message_id for p in b.decided] == [1, 2, 3]
        assert [code(p) for p in (passage, closed, through)] == [1, ReasonCode.SYSTEM_ERROR, 1]
        assert passage.message.payload == b'{"n":1}'
        assert b.counts() == {"open": 0, "held": 0}


async def test_a_target_that_dies_and_answers_inside_a_refused_submit_decides_once() -> None:
    class Dying(ManualTarget):
        def submit_send(self, call: object) -> bool:
            b.dispatcher.answered(self.no, [(call.call_id, CRASH)])  # type: ignore[attr-defined]
            return False

    async with bench() as b:
        passage = b.begin(Step(Dying("p", b.dispatcher), Policy.CLOSED))
        assert b.decided == [passage]
        assert code(passage) == ReasonCode.SYSTEM_ERROR
        assert b.counts() == {"open": 0, "held": 0}


async def test_a_message_sent_from_inside_a_decision_goes_its_own_way() -> None:
    async with bench() as b:
        target = b.target()
        step = Step(target, Policy.CLOSED)
        left: list[int] = []

        def decided(passage: Passage) -> None:
            left.append(passage.message.message_id)
            if passage.message.message_id == 1:
                b.begin(step, message_id=2)

        b.dispatcher._decided = decided
        b.begin(step, message_id=1)
        target.answer(CONTINUE)
        target.answer(CONTINUE)
        assert left == [1, 2]


# --- hold ------------------------------------------------------------------------------------


async def test_hold_release_rechecks_permission(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        target.ready = False
        passage = b.begin(Step(target, Policy.HOLD))
        await trio.sleep(BUDGET_S / 2)
        assert not b.decided
        b.refuse_on_release = Refuse(ReasonCode.SUBSCRIBER_NOT_EXIST)
        target.ready = True
        await trio.sleep(2 * HOLD_POLL_S)
        assert b.decided == [passage]
        assert code(passage) == ReasonCode.SUBSCRIBER_NOT_EXIST
        assert not target.calls, "who may not send is not shown to plugins"


async def test_hooks_are_called_at_least_once_per_message_id(autojump_clock: MockClock) -> None:
    """A held message is asked again with the same id, and earlier plugins are not."""
    async with bench() as b:
        first, second = b.target("first"), b.target("second")
        passage = b.begin(Step(first, Policy.CLOSED), Step(second, Policy.HOLD), message_id=5)
        first.answer(Replace(b'{"n":1}'))
        lost = second.send_call()
        second.ready = False
        second.answer(CRASH)
        second.ready = True
        await trio.sleep(2 * HOLD_POLL_S)
        again = second.send_call()
        assert again.message.message_id == lost.message.message_id == 5
        assert again.call_id != lost.call_id
        assert again.message.payload == b'{"n":1}'
        assert not first.calls
        second.answer(CONTINUE)
        assert (b.decided, code(passage)) == ([passage], 1)


async def test_the_budget_starts_again_on_release_and_is_kept(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        target.ready = False
        passage = b.begin(Step(target, Policy.HOLD, hold_s=5.0))
        await trio.sleep(3.0)
        target.ready = True
        await trio.sleep(2 * HOLD_POLL_S)
        deadline = target.send_call().deadline
        assert deadline == pytest.approx(trio.current_time() + BUDGET_S, abs=2 * HOLD_POLL_S)
        await trio.sleep(BUDGET_S * 0.8)
        assert not b.decided
        target.answer(CONTINUE)
        assert (b.decided, code(passage)) == ([passage], 1)


async def test_hold_ends_closed_after_hold_ms(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        target.ready = False
        b.begin(Step(target, Policy.HOLD, hold_s=2.0))
        await trio.sleep(2.0)
        assert not b.decided
        await trio.sleep(2 * HOLD_POLL_S)
        assert code(b.decided[0]) == ReasonCode.SYSTEM_ERROR


async def test_what_a_plugin_may_hold_is_bounded_in_count_and_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held, "HELD_MESSAGES_MAX", 3)
    monkeypatch.setattr(held, "HELD_BYTES_MAX", 100)
    async with bench() as b:
        target = b.target()
        target.ready = False
        step = Step(target, Policy.HOLD)
        for n in range(4):
            b.begin(step, payload=b"", message_id=n)
        assert [p.message.message_id for p in b.decided] == [3]
        other = b.target("other")
        other.ready = False
        b.begin(Step(other, Policy.HOLD), payload=b"x" * 60, message_id=10)
        b.begin(Step(other, Policy.HOLD), payload=b"x" * 60, message_id=11)
        assert [p.message.message_id for p in b.decided] == [3, 11]
        assert b.counts()["held"] == 4


async def test_many_held_messages_are_released_in_order_and_in_slices(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        target = b.target()
        target.ready = False
        count = 4 * TIMER_SLICE + 3
        for n in range(count):
            b.begin(Step(target, Policy.HOLD), message_id=n)
        target.ready = True
        asked = [0]
        b.dispatcher._turn_done = lambda: asked.append(len(target.calls))
        await trio.sleep(2 * HOLD_POLL_S)
        per_turn = [after - before for before, after in itertools.pairwise(asked)]
        assert sum(per_turn) == count
        assert max(per_turn) <= TIMER_SLICE
        ids = [target.send_call(i).message.message_id for i in range(count)]
        assert ids == list(range(count))


# --- time ------------------------------------------------------------------------------------


async def test_decided_messages_are_let_go_at_once(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        for n in range(1000):
            b.begin(Step(target, Policy.CLOSED), message_id=n)
            target.answer(CONTINUE)
        assert len(b.dispatcher._deadlines) <= 1, "payloads must not stay for the whole budget"


async def test_the_timer_sleeps_while_nothing_is_due(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        await wait_all_tasks_blocked()
        turns = b.turns
        for n in range(100):
            b.begin(Step(target, Policy.CLOSED), message_id=n)
            await wait_all_tasks_blocked()
        assert b.turns <= turns + 1, "a message must not cost the timer a turn"
        await trio.sleep(BUDGET_S * 1.1)
        assert len(b.decided) == 100


async def test_each_message_times_out_at_its_own_deadline(autojump_clock: MockClock) -> None:
    async with bench() as b:
        target = b.target()
        ends: list[float] = []
        b.dispatcher._decided = lambda passage: ends.append(trio.current_time())
        starts = []
        for n in range(5):
            starts.append(trio.current_time())
            b.begin(Step(target, Policy.CLOSED), message_id=n)
            await trio.sleep(0.1)
        await trio.sleep(BUDGET_S)
        waits = [end - start for start, end in zip(starts, ends, strict=True)]
        assert waits == pytest.approx([BUDGET_S] * 5, abs=0.02)


# --- look-ups --------------------------------------------------------------------------------

MakeLookup = Callable[[tuple[Step, ...], Callable[[LookupAnswer], None]], LookupCall]


def channel_lookup(steps: tuple[Step, ...], done: Callable[[LookupAnswer], None]) -> ChannelLookup:
    return ChannelLookup(steps, done, "g", 2)


def user_lookup(steps: tuple[Step, ...], done: Callable[[LookupAnswer], None]) -> UserLookup:
    return UserLookup(steps, done, "u")


def login_lookup(steps: tuple[Step, ...], done: Callable[[LookupAnswer], None]) -> LoginLookup:
    return LoginLookup(steps, done, uid="u", device_flag=0, device_id="d", token="t", peer_host="h")


def ask(b: Bench, make: MakeLookup, *steps: Step) -> list[LookupAnswer]:
    answers: list[LookupAnswer] = []
    b.dispatcher.look_up(make(steps, answers.append))
    return answers


async def test_the_first_real_answer_of_a_look_up_holds() -> None:
    async with bench() as b:
        first, second = b.target("first"), b.target("second")
        answers = ask(b, channel_lookup, Step(first, Policy.OPEN), Step(second, Policy.OPEN))
        first.answer(CONTINUE)
        assert not answers
        second.answer(ChannelAnswer(ban=True))
        assert answers == [ChannelAnswer(ban=True)]


@pytest.mark.parametrize("make", [channel_lookup, user_lookup])
async def test_a_refusal_or_a_foreign_answer_of_a_look_up_counts_as_crash(
    make: MakeLookup,
) -> None:
    async with bench() as b:
        for answer in (Refuse(9), Replace(b""), WRONG[make]):
            target = b.target()
            answers = ask(b, make, Step(target, Policy.CLOSED))
            target.answer(answer)
            [failure] = answers
            assert isinstance(failure, Failure)
            assert failure.outcome is Outcome.CRASH


WRONG: dict[MakeLookup, ChannelAnswer | UserAnswer] = {
    channel_lookup: UserAnswer(),
    user_lookup: ChannelAnswer(),
}


@pytest.mark.parametrize(
    ("make", "policy", "login_policy", "passes"),
    [
        (user_lookup, Policy.OPEN, Policy.CLOSED, True),
        (user_lookup, Policy.CLOSED, Policy.OPEN, False),
        (login_lookup, Policy.OPEN, Policy.CLOSED, False),
        (login_lookup, Policy.CLOSED, Policy.OPEN, True),
        (login_lookup, Policy.OPEN, Policy.HOLD, False),
    ],
)
async def test_a_login_has_a_policy_of_its_own(
    make: MakeLookup, policy: Policy, login_policy: Policy, passes: bool, autojump_clock: MockClock
) -> None:
    async with bench() as b:
        for how in ("crash", "timeout", "full", "down"):
            target = b.target()
            target.room, target.ready = how != "full", how != "down"
            answers = ask(b, make, Step(target, policy, login_policy=login_policy))
            if how == "crash":
                target.answer(CRASH)
            elif how == "timeout":
                await trio.sleep(BUDGET_S * 1.01)
            [answer] = answers
            assert (answer is None) is passes
            assert passes or isinstance(answer, Failure)
        assert b.counts()["open"] == 0


async def test_a_login_may_be_refused_with_a_code_of_the_plugins_own() -> None:
    async with bench() as b:
        target = b.target()
        answers = ask(b, login_lookup, Step(target, Policy.OPEN))
        target.answer(Refuse(200, "not today"))
        assert answers == [Refuse(200, "not today")]


async def test_a_look_up_that_times_out_at_an_open_step_ends_with_the_budget(
    autojump_clock: MockClock,
) -> None:
    async with bench() as b:
        slow, slower = b.target("slow"), b.target("slower")
        answers = ask(b, channel_lookup, Step(slow, Policy.OPEN), Step(slower, Policy.OPEN))
        await trio.sleep(BUDGET_S * 1.01)
        assert answers == [None]
        assert b.counts()["open"] == 0
