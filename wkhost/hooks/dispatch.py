"""The dispatcher: takes messages through the chain and turns verdicts into decisions.

Theory of operation. It is a synchronous state machine on batches. `begin` asks the first step
that matches; `answered` takes a batch of verdicts and moves each message one step on, into the
next plugin's outgoing batch; nothing is awaited per message. A message is in exactly one of three
places: `_open` (a plugin has it, by call id), `_held` (parked until its plugin is back), or
nowhere (decided). One timer task ends what is overdue. Silence is never consent: a crash, a
timeout and an overload become a decision only through the step's written policy. A plugin whose
breaker is open counts as failed without being asked. What each plugin said is counted in its
record and noted in the journal when its step is decided; both cost little.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import count

import trio

from wkhost.hooks.chain import EMPTY_CHAIN, Chain, Step
from wkhost.hooks.held import HOLD_POLL_S, HeldQueue, takes_calls
from wkhost.hooks.journal import Heard, Journal, still_open
from wkhost.hooks.lookup import LookupCall
from wkhost.hooks.lookup_calls import BROKEN, CRASH, OVERLOAD, TIMEOUT, LookupCalls
from wkhost.hooks.passage import Passage
from wkhost.hooks.probe import admit_probe
from wkhost.hooks.records import BOUNDS_S, HookLines
from wkhost.hooks.replacement import replacement_failure
from wkhost.hooks.target import Answer, SendCall
from wkhost.hooks.verdict import CLOSED_REASON as CLOSED
from wkhost.hooks.verdict import Continue, Failure, Outcome, Policy, Refuse, Replace

_CONTINUE = Outcome.CONTINUE.value  # an enum's attribute is no plain load
TIMER_SLICE = 128
"""Messages released or timed out in one synchronous stretch."""


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
        journal: Journal | None = None,
    ) -> None:
        self.chain = EMPTY_CHAIN
        self.journal = Journal() if journal is None else journal
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
        self._lookups = LookupCalls(clock, self._call_ids, self._open, budget_s, self._look_at)
        self._wake = trio.Event()
        self._sleeps_until = float("inf")
        # The last reading of the clock: one per message or batch of answers.
        self._now = 0.0
        self.late_verdicts: Counter[str] = Counter()

    def set_chain(self, chain: Chain) -> None:
        """Make `chain` hold for messages admitted from now on."""
        self.chain = chain
        self.journal.fit(chain)

    # --- the send chain -------------------------------------------------------------------------

    def begin(self, passage: Passage) -> bool:
        """Start the chain. True: no plugin is concerned, the message may go on at once."""
        self._now = now = self._clock()
        passage.deadline = now + self._budget_s
        if self._advance(passage):
            return True
        if passage.call_id:
            deadlines = self._deadlines
            while deadlines and not _waits(*deadlines[0]):
                deadlines.popleft()
            deadlines.append((passage.deadline, passage))
            if passage.deadline < self._sleeps_until:
                self._wake.set()
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
        passage.line = line = target.lines["send"]
        passage.called_at = 0.0
        if not target.ready:
            return CRASH
        call_id = next(self._call_ids)
        breaker = line.breaker
        if not breaker.closed and not admit_probe(target, line, step.policy, call_id, self._clock):
            return BROKEN[breaker.cause]
        self._open[call_id] = passage
        passage.call_id = call_id
        passage.called_at = self._now
        call = SendCall(call_id, passage.message, passage.origin, passage.deadline)
        if target.submit_send(call):
            return None
        # A plugin that died while it was handed the call has answered it already.
        if self._open.pop(call_id, None) is None:
            return None
        passage.call_id = 0
        passage.called_at = 0.0
        line.failed(call_id, Outcome.OVERLOAD, self._now)
        return OVERLOAD

    def _apply_policy(self, passage: Passage, step: Step, failure: Failure) -> bool:
        """Turn a failure into a decision. True: go on with the next step."""
        outcome = failure.outcome
        policy = step.policy
        passage.line.record.others[outcome] += 1
        if policy is Policy.OPEN:
            self.journal.note(passage, self._now, outcome, policy, 0, failure.detail)
            return True
        if policy is Policy.HOLD and self._hold(passage, step, failure):
            return False
        refusal = Refuse(CLOSED[outcome], f"{step.target.no}: {outcome}")
        text = failure.detail or refusal.text
        self.journal.note(passage, self._now, outcome, policy, refusal.code, text)
        self._refuse(passage, refusal)
        return False

    def _refuse(self, passage: Passage, refusal: Refuse) -> None:
        passage.refusal = refusal
        self._decided(passage)

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        """Take a batch of answers of one plugin, in any order."""
        take = self._open.pop
        note = self.journal.add
        self._now = now = self._clock()
        for call_id, answer in answers:
            waiting = take(call_id, None)
            if waiting is None:
                self._late(plugin_no)
                continue
            if isinstance(waiting, LookupCall):
                self._lookups.answered(waiting, call_id, answer, now)
                continue
            waiting.call_id = 0
            line = waiting.line
            record = line.record
            called_at = waiting.called_at
            seconds = now - called_at
            record.durations[bisect_left(BOUNDS_S, seconds)] += 1
            record.total_s += seconds
            if type(answer) is Continue:
                record.continued += 1
                m = waiting.message
                who = (m.message_id, waiting.origin.door, m.from_uid, m.channel_id, m.channel_type)
                note((*who, line.stamp, called_at, now, _CONTINUE, None, 0, ""))
                if not line.breaker.closed:
                    line.breaker.succeeded(call_id, now)
                waiting.step += 1
                if self._advance(waiting):
                    self._decided(waiting)
            else:
                self._take_verdict(waiting, call_id, answer)
        self.journal.tidy()

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        """These calls are issued again, to another generation: theirs is what comes of them."""
        for call_id in call_ids:
            waiting = self._open.get(call_id)
            if isinstance(waiting, LookupCall):
                waiting.line = lines[waiting.hook]
            elif waiting is not None:
                waiting.line = lines["send"]

    def _late(self, plugin_no: str) -> None:
        """A verdict came after the decision: it changes nothing, but the plugin is alive."""
        self.late_verdicts[plugin_no] += 1
        for line in self.chain.lines_of(plugin_no):
            line.breaker.hurry(self._now)

    def _take_verdict(self, passage: Passage, call_id: int, answer: Answer) -> None:
        line = passage.line
        if isinstance(answer, Refuse):
            self._note_verdict(passage, call_id, Outcome.REFUSE, answer.code, answer.text)
            self._refuse(passage, answer)
            return
        if isinstance(answer, Replace):
            failure = replacement_failure(
                passage.message.payload, answer.payload, self._max_payload_bytes
            )
            if failure is None:
                self._note_verdict(passage, call_id, Outcome.REPLACE)
                passage.message.payload = answer.payload
                passage.step += 1
                if self._advance(passage):
                    self._decided(passage)
                return
        elif isinstance(answer, Failure):
            failure = answer
        else:
            failure = Failure(Outcome.CRASH, f"{type(answer).__name__} does not answer `send`")
        line.failed(call_id, failure.outcome, self._now)
        self._failed(passage, failure)

    def _note_verdict(
        self, passage: Passage, call_id: int, outcome: Outcome, code: int = 0, text: str = ""
    ) -> None:
        line = passage.line
        line.record.others[outcome] += 1
        self.journal.note(passage, self._now, outcome, None, code, text)
        if not line.breaker.closed:
            line.breaker.succeeded(call_id, self._now)

    def _expire(self, passage: Passage, call_id: int) -> None:
        """The budget is used up: the remaining steps time out too, each under its own policy."""
        line = passage.line
        line.record.took(self._now - passage.called_at)
        line.failed(call_id, Outcome.TIMEOUT, self._now)
        steps = passage.chain.send
        message = passage.message
        for index in range(passage.step, len(steps)):
            step = steps[index]
            if step.matches is not None and not step.matches(message):
                continue
            if index != passage.step:
                passage.step = index
                passage.line = step.target.lines["send"]
                passage.called_at = 0.0
            if not self._apply_policy(passage, step, TIMEOUT):
                return
        passage.step = len(steps)
        self._decided(passage)

    def _failed(self, passage: Passage, failure: Failure) -> None:
        step = passage.chain.send[passage.step]
        if self._apply_policy(passage, step, failure):
            passage.step += 1
            if self._advance(passage):
                self._decided(passage)

    # --- hold -----------------------------------------------------------------------------------

    def _hold(self, passage: Passage, step: Step, failure: Failure) -> bool:
        """Park the message until its plugin is back. False: it may not wait (any longer)."""
        now = self._clock()
        if passage.held_since and now >= passage.held_since + step.hold_s:
            return False
        queue = self._held.setdefault(step.target.no, HeldQueue())
        if not queue.has_room(passage):
            return False
        queue.put(passage, now)
        passage.failure, passage.failed_at = failure, self._now
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
                now = self._clock()
                step = passages[0].chain.send[passages[0].step]
                overdue = now >= passages[0].held_since + step.hold_s
                if not takes_calls(step, now) and not overdue:
                    break
                left -= 1
                self._release(queue.take(), step, now, overdue=overdue)
            if not passages and self._held.get(no) is queue:
                del self._held[no]

    def _release(self, passage: Passage, step: Step, now: float, *, overdue: bool) -> None:
        failure = passage.failure
        said = (passage, passage.failed_at, failure.outcome, Policy.HOLD)
        if overdue and not takes_calls(step, now):
            refusal = Refuse(CLOSED[failure.outcome], f"{step.target.no}: held too long")
            self.journal.note(*said, refusal.code, f"held too long: {failure.detail}")
            self._refuse(passage, refusal)
            return
        self.journal.note(*said, 0, failure.detail)
        changed = self._recheck(passage)
        if changed is not None:
            self._refuse(passage, changed)
        elif self.begin(passage):
            self._decided(passage)

    # --- look-ups -------------------------------------------------------------------------------

    def look_up(self, call: LookupCall) -> None:
        """Ask the steps of a look-up in order; `call.done` gets the first real answer.

        It gets None when every step continued or failed open, and may be called before this
        returns.
        """
        self._lookups.begin(call)

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
        at = min(deadlines[0][0] if deadlines else float("inf"), self._lookups.next_deadline())
        if self._held:
            at = min(at, self._clock() + HOLD_POLL_S)
        return at

    def _end_overdue(self) -> None:
        self._now = now = self._clock()
        deadlines = self._deadlines
        left = TIMER_SLICE
        while left and deadlines and deadlines[0][0] <= now:
            deadline, passage = deadlines.popleft()
            if _waits(deadline, passage):
                left -= 1
                call_id = passage.call_id
                del self._open[call_id]
                passage.call_id = 0
                self._expire(passage, call_id)
        self._lookups.end_overdue(now)

    def heard_of(self, message_id: int) -> list[Heard]:
        """Return who had a message, in order: what the journal holds, and who has it now."""
        held = (passage for queue in self._held.values() for passage in queue.passages)
        return self.journal.find(message_id) + still_open(message_id, self._open.values(), held)

    def statistics(self) -> dict[str, object]:
        """Return counts: open calls, parked messages, late verdicts, entries of the journal."""
        return {
            "chain": self.chain.number,
            "open_calls": len(self._open),
            "held": {no: len(queue.passages) for no, queue in self._held.items()},
            "late_verdicts": dict(self.late_verdicts),
            "journal": len(self.journal),
        }


def _waits(deadline: float, passage: Passage) -> bool:
    """Whether the passage still waits for a verdict under this deadline (not a later one)."""
    return passage.call_id != 0 and passage.deadline == deadline
