"""A circuit breaker: one per generation of a plugin and hook. Pure; the time is an argument.

Theory of operation. Closed, it only hears of failures. It opens when `failures` of them came within
`window_s` and no more verdicts than that came meanwhile, so a plugin that answers most of its calls
keeps being asked. Failures closer than `MIN_GAP_S` count as one: a burst that did not fit, or all
that a dying process held, is one event. Open, nobody is asked and the policy decides at once. After
a pause one probe may go (half-open): its verdict closes the breaker, its failure opens it again for
twice as long. What else comes in while it is not closed belongs to calls of before, and is ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

import msgspec

from wkhost.hooks.verdict import Outcome

MIN_GAP_S = 0.01


class BreakerRules(msgspec.Struct, frozen=True):
    """When a breaker opens and for how long. `failures` is at least 1."""

    failures: int = 5
    window_s: float = 10.0
    pause_s: float = 1.0
    longest_pause_s: float = 30.0


DEFAULT_RULES = BreakerRules()


class BreakerState(IntEnum):
    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """See the module. `cause` is the failure that opened it last; `opened` counts openings.

    `changed` hears of every change of `state`. Look at `closed` first: it is all that a call costs
    while the plugin is well.
    """

    __slots__ = (
        "_changed",
        "_failures",
        "_probe_id",
        "_probe_until",
        "_retry_at",
        "_rules",
        "cause",
        "closed",
        "opened",
        "pause_s",
        "state",
    )

    def __init__(self, rules: BreakerRules, changed: Callable[[Breaker], None]) -> None:
        self.closed = True
        self.state = BreakerState.CLOSED
        self.cause = Outcome.CRASH
        self.opened = 0
        self.pause_s = 0.0
        """The pause that follows the last opening."""
        self._rules = rules
        self._changed = changed
        self._failures: deque[tuple[float, int]] = deque(maxlen=rules.failures)
        self._retry_at = 0.0
        self._probe_id = 0
        self._probe_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()}>"

    def failed(self, call_id: int, outcome: Outcome, now: float, verdicts: int) -> None:
        """A call failed. `verdicts` counts the verdicts of this plugin and hook so far."""
        if self.state is BreakerState.HALF_OPEN and call_id == self._probe_id:
            self._open(outcome, now, self.pause_s * 2)
        elif self.closed:
            failures = self._failures
            if failures and now - failures[-1][0] < MIN_GAP_S:
                return
            failures.append((now, verdicts))
            first_at, verdicts_then = failures[0]
            rules = self._rules
            if (
                len(failures) == rules.failures
                and now - first_at <= rules.window_s
                and verdicts - verdicts_then <= rules.failures
            ):
                # Soon after it closed the trouble is still the same, and so is the patience.
                again = self.opened and now - self._retry_at <= rules.window_s
                self._open(outcome, now, self.pause_s * 2 if again else rules.pause_s)

    def succeeded(self, call_id: int, now: float) -> None:
        """A verdict came. Only that of the probe matters."""
        if self.state is BreakerState.HALF_OPEN and call_id == self._probe_id:
            self._failures.clear()
            self._retry_at = now
            self._become(BreakerState.CLOSED)

    def is_due(self, now: float) -> bool:
        """Whether a probe may go now. A probe that nobody ends is failed at its end."""
        if self.state is BreakerState.HALF_OPEN and now >= self._probe_until:
            self._open(Outcome.TIMEOUT, self._probe_until, self.pause_s * 2)
        return self.state is BreakerState.OPEN and now >= self._retry_at

    def probe(self, call_id: int, until: float) -> None:
        """The call `call_id` is the probe. Without a result it has failed at `until`."""
        self._probe_id = call_id
        self._probe_until = until
        self._become(BreakerState.HALF_OPEN)

    def hurry(self, now: float) -> None:
        """The plugin gave a sign of life: the next probe need not wait."""
        if self.state is BreakerState.OPEN:
            self._retry_at = min(self._retry_at, now)

    def _open(self, cause: Outcome, now: float, pause_s: float) -> None:
        self.cause = cause
        self.opened += 1
        self.pause_s = min(pause_s, self._rules.longest_pause_s)
        self._retry_at = now + self.pause_s
        self._become(BreakerState.OPEN)

    def _become(self, state: BreakerState) -> None:
        self.state = state
        self.closed = state is BreakerState.CLOSED
        self._changed(self)
