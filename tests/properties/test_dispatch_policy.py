"""Random chains of plugins, verdicts and failures, held against the policy table."""

from __future__ import annotations

import random
from typing import NamedTuple

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.targets import ManualTarget
from wkhost.errors import ReasonCode
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.passage import Passage
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse, Replace
from wkhost.types import Message

BUDGET_S = 1.0
HOLD_S = 2.0
MAX_PAYLOAD_BYTES = 64


class Act(NamedTuple):
    """What one plugin does with a message, and the policy that stands over it."""

    deed: str
    policy: Policy
    matches: bool


# deed -> the outcome that the host must see.
OUTCOMES = {
    "continue": Outcome.CONTINUE,
    "replace": Outcome.REPLACE,
    "replace_too_large": Outcome.CRASH,
    "replace_not_json": Outcome.CRASH,
    "refuse": Outcome.REFUSE,
    "crash": Outcome.CRASH,
    "silence": Outcome.TIMEOUT,
    "full": Outcome.OVERLOAD,
    "down": Outcome.CRASH,
}
ACTS = st.builds(
    Act,
    deed=st.sampled_from(sorted(OUTCOMES)),
    policy=st.sampled_from(list(Policy)),
    matches=st.booleans() | st.just(True),
)


def expected(acts: list[Act]) -> tuple[bytes, int]:
    """The policy table: (final payload, reason code; 1 = goes on)."""
    payload = b'{"n":0}'
    budget_left = True
    for index, act in enumerate(acts):
        if not act.matches:
            continue
        # The budget is the whole chain's; a release after hold starts it again.
        budget_left = budget_left or act.policy is Policy.HOLD
        outcome = OUTCOMES[act.deed] if budget_left else Outcome.TIMEOUT
        if outcome is Outcome.CONTINUE:
            continue
        if outcome is Outcome.REPLACE:
            payload = b'{"n":%d}' % (index + 1)
        elif outcome is Outcome.REFUSE:
            return payload, 100 + index
        elif act.policy is not Policy.OPEN:
            # A held message whose plugin never recovers is refused as closed would.
            overload = outcome is Outcome.OVERLOAD
            return payload, ReasonCode.RATE_LIMIT if overload else ReasonCode.SYSTEM_ERROR
        elif outcome is Outcome.TIMEOUT:
            budget_left = False
    return payload, ReasonCode.SUCCESS


def do_deeds(targets: list[ManualTarget], acts: list[Act], order: random.Random) -> bool:
    """Answer one open call, of a plugin chosen at random. False: none wants to answer."""
    busy = [i for i, target in enumerate(targets) if target.calls and acts[i].deed != "silence"]
    if not busy:
        return False
    index = order.choice(busy)
    target, act = targets[index], acts[index]
    which = order.randrange(len(target.calls))
    match act.deed:
        case "continue":
            target.answer(CONTINUE, which)
        case "replace":
            target.answer(Replace(b'{"n":%d}' % (index + 1)), which)
        case "replace_too_large":
            target.answer(Replace(b'"' + b"x" * MAX_PAYLOAD_BYTES + b'"'), which)
        case "replace_not_json":
            target.answer(Replace(b"{nope"), which)
        case "refuse":
            target.answer(Refuse(100 + index), which)
        case _:
            target.answer(Failure(Outcome.CRASH), which)
    return True


class Bench:
    """A dispatcher, its plugins, and what became of each message."""

    def __init__(self, acts: list[Act]) -> None:
        self.acts = acts
        self.decided: dict[int, Passage] = {}
        self.dispatcher = Dispatcher(
            clock=trio.current_time,
            decided=self._decided,
            recheck=lambda passage: None,
            turn_done=lambda: None,
            budget_s=BUDGET_S,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
        )
        self.targets = [ManualTarget(f"p{i}", self.dispatcher) for i in range(len(acts))]
        steps = []
        for act, target in zip(acts, self.targets, strict=True):
            target.room = act.deed != "full"
            target.ready = act.deed != "down"
            matches = None if act.matches else _never
            steps.append(Step(target, act.policy, matches, HOLD_S))
        self.chain = Chain(1, send=tuple(steps))

    def _decided(self, passage: Passage) -> None:
        assert passage.message.message_id not in self.decided, "decided twice"
        self.decided[passage.message.message_id] = passage

    def begin(self, message_id: int) -> None:
        message = Message(message_id, "g", 2, "u", "", b'{"n":0}')
        passage = Passage(message, SendOrigin("client"), self.chain)
        if self.dispatcher.begin(passage):
            self._decided(passage)


def _never(message: Message) -> bool:
    return False


@settings(max_examples=150, deadline=None)
@given(
    acts=st.lists(ACTS, max_size=5),
    messages=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_every_chain_decides_as_the_policy_table_says(
    acts: list[Act], messages: int, seed: int
) -> None:
    order = random.Random(seed)

    async def main() -> Bench:
        bench = Bench(acts)
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.dispatcher.run)
            for message_id in range(messages):
                bench.begin(message_id)
            for _ in range(5_000):
                answered = do_deeds(bench.targets, acts, order)
                if len(bench.decided) == messages:
                    break
                if not answered:
                    await trio.sleep(BUDGET_S / 5)
                elif order.random() < 0.2:
                    await trio.sleep(BUDGET_S / 500)
            nursery.cancel_scope.cancel()
        return bench

    bench = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    payload, reason = expected(acts)
    assert len(bench.decided) == messages
    for passage in bench.decided.values():
        assert (passage.refusal.code if passage.refusal else ReasonCode.SUCCESS) == reason
        if reason == ReasonCode.SUCCESS:
            assert passage.message.payload == payload
    assert not bench.dispatcher.statistics()["held"]


async def test_a_late_verdict_changes_nothing_and_is_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench([Act("silence", Policy.CLOSED, True)])
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.dispatcher.run)
        bench.begin(7)
        await trio.sleep(BUDGET_S * 1.01)
        refusal = bench.decided[7].refusal
        assert refusal is not None
        assert refusal.code == ReasonCode.SYSTEM_ERROR
        bench.targets[0].answer(Replace(b'{"n":9}'))
        assert bench.decided[7].message.payload == b'{"n":0}'
        assert bench.dispatcher.late_verdicts["p0"] == 1
        nursery.cancel_scope.cancel()


async def test_held_messages_leave_in_order_within_100_ms_of_recovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench([Act("down", Policy.HOLD, True)])
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.dispatcher.run)
        for message_id in range(5):
            bench.begin(message_id)
        await trio.sleep(HOLD_S / 2)
        assert not bench.decided
        bench.targets[0].ready = True
        await trio.sleep(0.1)
        asked = [call.message.message_id for call in map(bench.targets[0].send_call, range(5))]
        assert asked == [0, 1, 2, 3, 4]
        for _ in range(5):
            bench.targets[0].answer(CONTINUE)
        assert list(bench.decided) == [0, 1, 2, 3, 4]
        assert not any(passage.refusal for passage in bench.decided.values())
        nursery.cancel_scope.cancel()


async def test_the_budget_covers_the_whole_chain(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench([Act("continue", Policy.CLOSED, True)] * 3)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.dispatcher.run)
        start = trio.current_time()
        bench.begin(1)
        for target in bench.targets[:2]:
            await trio.sleep(BUDGET_S * 0.4)
            target.answer(CONTINUE)
        await trio.sleep(BUDGET_S * 0.21)
        assert 1 in bench.decided, "three steps of 0.4 s must not add up to more than 1 s"
        assert trio.current_time() - start < BUDGET_S * 1.1
        nursery.cancel_scope.cancel()
