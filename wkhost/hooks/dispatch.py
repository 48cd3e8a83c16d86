"""The dispatcher: takes messages through the chain and turns verdicts into decisions.

Theory of operation. It is a synchronous state machine on batches. `begin` asks the first step
that matches; `answered` takes a batch of verdicts and moves each message one step on, into the
next plugin's outgoing batch; nothing is awaited per message. A message is in exactly one of three
places: `_open` (a plugin has it, by call id), `_held` (parked until its plugin is back), or
nowhere (decided). One timer task ends what is overdue. Silence is never consent: a crash, a
timeout and an overload become a decision only through the step's written policy.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import count

import msgspec
import trio

from wkhost.errors import ReasonCode
from wkhost.hooks.chain import EMPTY_CHAIN, Chain, Step
from wkhost.hooks.lookup import LookupCall
from wkhost.hooks.passage import Passage
from wkhost.hooks.target import Answer, ChannelAnswer, SendCall, UserAnswer
from wkhost.hooks.verdict import Continue, Failure, Outcome, Policy, Refuse, Replace

HELD_BYTES_MAX = 16 * 1024 * 1024
HELD_MESSAGES_MAX = 10_000
HOLD_POLL_S = 0.05
"""How often a parked message's plugin is looked at; recovery must release within 100 ms."""
TIMER_SLICE = 128
"""Messages released or timed out in one synchronous stretch."""

_CRASH = Failure(Outcome.CRASH, "the plugin is not running")
_TIMEOUT = Failure(Outcome.TIMEOUT, "no verdict within the budget")
_OVERLOAD = Failure(Outcome.OVERLOAD, "too much waits for the plugin")

CLOSED_REASON = {
    Outcome.CRASH: ReasonCode.SYSTEM_ERROR,
    Outcome.TIMEOUT: ReasonCode.SYSTEM_ERROR,
    Outcome.OVERLOAD: ReasonCode.RATE_LIMIT,
}


class HeldQueue:
    """Messages parked for one plugin, in order, bounded in bytes and count."""

    __slots__ = ("bytes", "passages")

    def __init__(self) -> None:
        self.passages: deque[Passage] = deque()
        self.bytes = 0

    def has_room(self, passage: Passage) -> bool:
        return (
            len(self.passages) < HELD_MESSAGES_MAX
            and self.bytes + len(passage.message.payload) <= HELD_BYTES_MAX
        )


class Dispatcher:
    """Owns every message that plugins decide on.

    `decided` is called once for each passage for which `begin` returned False, when its fate is
    known; `passage.refusal` tells it. `recheck` is asked when a parked message is released: None,
    or the refusal that meanwhile applies (permissions may have changed). `turn_done` follows what
    the timer task decided.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        decided: Callable[[Passage], None],
        recheck: Callable[[Passage], Refuse | None],
        turn_done: Callable[[], None],
        budget_s: float,
        max_payload_bytes: int,
    ) -> None:
        self.chain = EMPTY_CHAIN
        self._clock = clock
        self._decided = decided
        self._recheck = recheck
        self._turn_done = turn_done
        self._budget_s = budget_s
        self._max_payload_bytes = max_payload_bytes
        self._call_ids = count(1)
        self._open: dict[int, Passage | LookupCall] = {}
        self._held: dict[str, HeldQueue] = {}
        self._more_held = False
        # Passages by deadline. Every budget is equally long, so this is in order by itself;
        # decided ones are dropped when they reach the head, so that their payloads go at once.
        self._deadlines: deque[tuple[float, Passage]] = deque()
        self._lookup_deadlines: list[tuple[float, int]] = []
        self._wake = trio.Event()
        self._sleeps_until = float("inf")
        self.outcomes: Counter[tuple[str, str, Outcome]] = Counter()
        self.late_verdicts: Counter[str] = Counter()

    def set_chain(self, chain: Chain) -> None:
        """Make `chain` hold for messages admitted from now on."""
        self.chain = chain

    # --- the send chain -------------------------------------------------------------------------

    def begin(self, passage: Passage) -> bool:
        """Start the chain. True: no plugin is concerned, the message may go on at once."""
        passage.deadline = self._clock() + self._budget_s
        if self._advance(passage):
            return True
        if passage.call_id:
            deadlines = self._deadlines
            while deadlines and not _waits(*deadlines[0]):
                deadlines.popleft()
            deadlines.append((passage.deadline, passage))
            self._look_at(passage.deadline)
        return False

    def _advance(self, passage: Passage) -> bool:
        """Ask steps from `passage.step` on until one has the message. True: the chain is done."""
        steps = passage.chain.send
        message = passage.message
        for index in range(passage.step, len(steps)):
            step = steps[index]
            if step.matches is not None and not step.matches(message):
                continue
            passage.step = index
            failure = self._ask(passage, step)
            if failure is None:
                return False
            if not self._apply_policy(passage, step, failure):
                return False
        passage.step = len(steps)
        return True

    def _ask(self, passage: Passage, step: Step) -> Failure | None:
        target = step.target
        if not target.ready:
            return _CRASH
        call_id = next(self._call_ids)
        self._open[call_id] = passage
        passage.call_id = call_id
        if target.submit_send(SendCall(call_id, passage.message, passage.origin, passage.deadline)):
            return None
        # A plugin that died while it was handed the call has answered it already.
        if self._open.pop(call_id, None) is None:
            return None
        passage.call_id = 0
        return _OVERLOAD

    def _apply_policy(self, passage: Passage, step: Step, failure: Failure) -> bool:
        """Turn a failure into a decision. True: go on with the next step."""
        outcome = failure.outcome
        self.outcomes[step.target.no, "send", outcome] += 1
        policy = step.policy
        if policy is Policy.OPEN:
            return True
        if policy is Policy.HOLD and self._hold(passage, step):
            return False
        self._refuse(passage, Refuse(CLOSED_REASON[outcome], f"{step.target.no}: {outcome}"))
        return False

    def _refuse(self, passage: Passage, refusal: Refuse) -> None:
        passage.refusal = refusal
        self._decided(passage)

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        """Take a batch of answers of one plugin, in any order."""
        take = self._open.pop
        outcomes = self.outcomes
        for call_id, answer in answers:
            waiting = take(call_id, None)
            if waiting is None:
                self.late_verdicts[plugin_no] += 1
                continue
            if isinstance(waiting, LookupCall):
                self._lookup_answered(waiting, answer)
                continue
            waiting.call_id = 0
            if type(answer) is Continue:
                outcomes[plugin_no, "send", Outcome.CONTINUE] += 1
                waiting.step += 1
                if self._advance(waiting):
                    self._decided(waiting)
            else:
                self._take_verdict(waiting, plugin_no, answer)

    def _take_verdict(self, passage: Passage, plugin_no: str, answer: Answer) -> None:
        if isinstance(answer, Refuse):
            self.outcomes[plugin_no, "send", Outcome.REFUSE] += 1
            self._refuse(passage, answer)
            return
        if isinstance(answer, Replace):
            failure = self._check_replacement(passage, answer)
            if failure is None:
                self.outcomes[plugin_no, "send", Outcome.REPLACE] += 1
                passage.message.payload = answer.payload
                passage.step += 1
                if self._advance(passage):
                    self._decided(passage)
                return
        elif isinstance(answer, Failure):
            failure = answer
        else:
            failure = Failure(Outcome.CRASH, f"{type(answer).__name__} does not answer `send`")
        self._failed(passage, failure)

    def _expire(self, passage: Passage) -> None:
        """The budget is used up: the remaining steps time out too, each under its own policy."""
        steps = passage.chain.send
        message = passage.message
        for index in range(passage.step, len(steps)):
            step = steps[index]
            if step.matches is not None and not step.matches(message):
                continue
            passage.step = index
            if not self._apply_policy(passage, step, _TIMEOUT):
                return
        passage.step = len(steps)
        self._decided(passage)

    def _failed(self, passage: Passage, failure: Failure) -> None:
        step = passage.chain.send[passage.step]
        if self._apply_policy(passage, step, failure):
            passage.step += 1
            if self._advance(passage):
                self._decided(passage)

    def _check_replacement(self, passage: Passage, answer: Replace) -> Failure | None:
        """A replaced payload must fit, and stay JSON where the original was."""
        size = len(answer.payload)
        if size > self._max_payload_bytes:
            return Failure(
                Outcome.CRASH,
                f"replaced payload has {size} bytes, at most {self._max_payload_bytes} are allowed",
            )
        if _is_json(passage.message.payload) and not _is_json(answer.payload):
            return Failure(Outcome.CRASH, "replaced payload is not JSON, the original was")
        return None

    # --- hold -----------------------------------------------------------------------------------

    def _hold(self, passage: Passage, step: Step) -> bool:
        """Park the message until its plugin is back. False: it may not wait (any longer)."""
        now = self._clock()
        if passage.held_since and now >= passage.held_since + step.hold_s:
            return False
        queue = self._held.setdefault(step.target.no, HeldQueue())
        if not queue.has_room(passage):
            return False
        if not passage.held_since:
            passage.held_since = now
        queue.passages.append(passage)
        queue.bytes += len(passage.message.payload)
        self._look_at(now + HOLD_POLL_S)
        return True

    def _release_held(self) -> None:
        """Release a slice of what may go; the rest follows in the next turn of the timer."""
        left = TIMER_SLICE
        self._more_held = False
        for no, queue in list(self._held.items()):
            passages = queue.passages
            for _ in range(len(passages)):
                if not left:
                    self._more_held = True
                    return
                passage = passages[0]
                step = passage.chain.send[passage.step]
                overdue = self._clock() >= passage.held_since + step.hold_s
                if not step.target.ready and not overdue:
                    break
                left -= 1
                passages.popleft()
                queue.bytes -= len(passage.message.payload)
                self._release(passage, step, overdue=overdue)
            if not passages and self._held.get(no) is queue:
                del self._held[no]

    def _release(self, passage: Passage, step: Step, *, overdue: bool) -> None:
        if overdue and not step.target.ready:
            self._refuse(
                passage, Refuse(ReasonCode.SYSTEM_ERROR, f"{step.target.no}: held too long")
            )
            return
        refusal = self._recheck(passage)
        if refusal is not None:
            self._refuse(passage, refusal)
        elif self.begin(passage):
            self._decided(passage)

    # --- look-ups -------------------------------------------------------------------------------

    def look_up(self, call: LookupCall) -> None:
        """Ask the steps of a look-up in order; `call.done` gets the first real answer.

        It gets None when every step continued or failed open, and may be called before this
        returns.
        """
        call.deadline = self._clock() + self._budget_s
        self._advance_lookup(call)

    def _advance_lookup(self, call: LookupCall) -> None:
        steps = call.steps
        while call.index < len(steps):
            step = steps[call.index]
            failure = self._ask_lookup(call, step)
            if failure is None:
                return
            if not self._lookup_failed(call, step, failure):
                return
            call.index += 1
        call.done(None)

    def _ask_lookup(self, call: LookupCall, step: Step) -> Failure | None:
        if not step.target.ready:
            return _CRASH
        call_id = next(self._call_ids)
        self._open[call_id] = call
        if call.submit(step.target, call_id):
            heapq.heappush(self._lookup_deadlines, (call.deadline, call_id))
            self._look_at(call.deadline)
            return None
        if self._open.pop(call_id, None) is None:
            return None
        return _OVERLOAD

    def _lookup_answered(self, call: LookupCall, answer: Answer) -> None:
        step = call.steps[call.index]
        no = step.target.no
        if isinstance(answer, call.answer_type):
            self.outcomes[no, call.hook, Outcome.REPLACE] += 1
            assert isinstance(answer, ChannelAnswer | UserAnswer)
            call.done(answer)
            return
        if isinstance(answer, Refuse) and call.may_refuse:
            self.outcomes[no, call.hook, Outcome.REFUSE] += 1
            call.done(answer)
            return
        if isinstance(answer, Continue):
            self.outcomes[no, call.hook, Outcome.CONTINUE] += 1
        else:
            failure = (
                answer
                if isinstance(answer, Failure)
                else Failure(
                    Outcome.CRASH, f"{type(answer).__name__} does not answer `{call.hook}`"
                )
            )
            if not self._lookup_failed(call, step, failure):
                return
        call.index += 1
        self._advance_lookup(call)

    def _lookup_failed(self, call: LookupCall, step: Step, failure: Failure) -> bool:
        """Count a failure and apply the policy. True: ask the next step."""
        self.outcomes[step.target.no, call.hook, failure.outcome] += 1
        policy = step.login_policy if call.may_refuse else step.policy
        if policy is Policy.OPEN:
            return True
        call.done(failure)
        return False

    # --- time -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End what is overdue and release what is parked. Sleeps while there is neither."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            self._sleeps_until = self._next_look()
            with trio.move_on_after(max(0.0, self._sleeps_until - self._clock())):
                await self._wake.wait()
            self._end_overdue()
            if self._held:
                self._release_held()
            self._turn_done()

    def _look_at(self, at: float) -> None:
        """Wake the timer task if it would sleep beyond `at`."""
        if at < self._sleeps_until:
            self._wake.set()

    def _next_look(self) -> float:
        """Return when something may be due: at the latest then the timer must look."""
        if self._more_held:
            return self._clock()
        deadlines = self._deadlines
        while deadlines and not _waits(*deadlines[0]):
            deadlines.popleft()
        lookups = self._lookup_deadlines
        while lookups and lookups[0][1] not in self._open:
            heapq.heappop(lookups)
        at = deadlines[0][0] if deadlines else float("inf")
        if lookups:
            at = min(at, lookups[0][0])
        if self._held:
            at = min(at, self._clock() + HOLD_POLL_S)
        return at

    def _end_overdue(self) -> None:
        now = self._clock()
        deadlines = self._deadlines
        left = TIMER_SLICE
        while left and deadlines and deadlines[0][0] <= now:
            deadline, passage = deadlines.popleft()
            if _waits(deadline, passage):
                left -= 1
                del self._open[passage.call_id]
                passage.call_id = 0
                self._expire(passage)
        lookups = self._lookup_deadlines
        while lookups and lookups[0][0] <= now:
            _, call_id = heapq.heappop(lookups)
            call = self._open.pop(call_id, None)
            if call is not None:
                assert isinstance(call, LookupCall)
                self._lookup_answered(call, _TIMEOUT)

    def statistics(self) -> dict[str, object]:
        """Return counts: open calls, parked messages, outcomes, late verdicts."""
        return {
            "chain": self.chain.number,
            "open_calls": len(self._open),
            "held": {no: len(queue.passages) for no, queue in self._held.items()},
            "outcomes": {
                f"{no}/{hook}/{outcome}": n for (no, hook, outcome), n in self.outcomes.items()
            },
            "late_verdicts": dict(self.late_verdicts),
        }


def _waits(deadline: float, passage: Passage) -> bool:
    """Whether the passage still waits for a verdict under this deadline (not a later one)."""
    return passage.call_id != 0 and passage.deadline == deadline


def _is_json(payload: bytes) -> bool:
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
