"""Look-ups on their way through the plugins: the dispatcher's other half.

The steps of a look-up are asked in order until one gives a real answer. Calls that are open stand
in the dispatcher's table, beside those of messages.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from wkhost.hooks.chain import Step
from wkhost.hooks.lookup import LookupCall
from wkhost.hooks.probe import admit_probe
from wkhost.hooks.target import Answer, ChannelAnswer, UserAnswer
from wkhost.hooks.verdict import Continue, Failure, Outcome, Policy, Refuse

CRASH = Failure(Outcome.CRASH, "the plugin is not running")
TIMEOUT = Failure(Outcome.TIMEOUT, "no verdict within the budget")
OVERLOAD = Failure(Outcome.OVERLOAD, "too much waits for the plugin")
BROKEN = {
    outcome: Failure(outcome, "the breaker is open")
    for outcome in (Outcome.CRASH, Outcome.TIMEOUT, Outcome.OVERLOAD)
}
"""What a step counts as that an open breaker keeps from being asked, by what opened it."""


class LookupCalls:
    """Owns every look-up. `look_at(deadline)` asks for a call of `end_overdue` then."""

    def __init__(
        self,
        clock: Callable[[], float],
        call_ids: Iterator[int],
        table: MutableMapping[int, Any],
        budget_s: float,
        look_at: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._call_ids = call_ids
        self._open = table
        self._budget_s = budget_s
        self._look_at = look_at
        self._deadlines: list[tuple[float, int]] = []

    def begin(self, call: LookupCall) -> None:
        """Ask the steps in order; `call.done` gets the end, maybe before this returns."""
        now = self._clock()
        call.deadline = now + self._budget_s
        self._advance(call, now)

    def _advance(self, call: LookupCall, now: float) -> None:
        steps = call.steps
        while call.index < len(steps):
            step = steps[call.index]
            failure = self._ask(call, step, now)
            if failure is None:
                return
            if not _goes_on(call, step, failure):
                return
            call.index += 1
        call.done(None)

    def _ask(self, call: LookupCall, step: Step, now: float) -> Failure | None:
        target = step.target
        line = call.line = target.lines[call.hook]
        call.called_at = now
        if not target.ready:
            return CRASH
        call_id = next(self._call_ids)
        breaker = line.breaker
        if not breaker.closed and not admit_probe(
            target, line, _policy(call, step), call_id, self._clock
        ):
            return BROKEN[breaker.cause]
        self._open[call_id] = call
        if call.submit(target, call_id):
            heapq.heappush(self._deadlines, (call.deadline, call_id))
            self._look_at(call.deadline)
            return None
        # A plugin that died while it was handed the call has answered it already.
        if self._open.pop(call_id, None) is None:
            return None
        line.failed(call_id, Outcome.OVERLOAD, now)
        return OVERLOAD

    def answered(self, call: LookupCall, call_id: int, answer: Answer, now: float) -> None:
        """Take the answer of a call that was open."""
        step = call.steps[call.index]
        line = call.line
        record = line.record
        record.took(now - call.called_at)
        outcome = _outcome(call, answer)
        if outcome is None:
            failure = _as_failure(call, answer)
            line.failed(call_id, failure.outcome, now)
            if not _goes_on(call, step, failure):
                return
        else:
            if not line.breaker.closed:
                line.breaker.succeeded(call_id, now)
            if outcome is not Outcome.CONTINUE:
                record.others[outcome] += 1
                assert isinstance(answer, ChannelAnswer | UserAnswer | Refuse)
                call.done(answer)
                return
            record.continued += 1
        call.index += 1
        self._advance(call, now)

    def next_deadline(self) -> float:
        deadlines = self._deadlines
        while deadlines and deadlines[0][1] not in self._open:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else float("inf")

    def end_overdue(self, now: float) -> None:
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            _, call_id = heapq.heappop(deadlines)
            call = self._open.pop(call_id, None)
            if call is not None:
                self.answered(call, call_id, TIMEOUT, now)


def _goes_on(call: LookupCall, step: Step, failure: Failure) -> bool:
    """Count a failure and apply the policy. True: ask the next step."""
    call.line.record.others[failure.outcome] += 1
    if _policy(call, step) is Policy.OPEN:
        return True
    call.done(failure)
    return False


def _policy(call: LookupCall, step: Step) -> Policy:
    return step.login_policy if call.may_refuse else step.policy


def _outcome(call: LookupCall, answer: Answer) -> Outcome | None:
    """Return what an answer means, None for a failure."""
    if isinstance(answer, call.answer_type):
        return Outcome.REPLACE
    if isinstance(answer, Refuse) and call.may_refuse:
        return Outcome.REFUSE
    return Outcome.CONTINUE if isinstance(answer, Continue) else None


def _as_failure(call: LookupCall, answer: Answer) -> Failure:
    if isinstance(answer, Failure):
        return answer
    return Failure(Outcome.CRASH, f"{type(answer).__name__} does not answer `{call.hook}`")
