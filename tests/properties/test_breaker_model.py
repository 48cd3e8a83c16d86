"""A breaker held against a naive model that keeps all that ever happened, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from wkhost.hooks.breaker import MIN_GAP_S, Breaker, BreakerRules, BreakerState
from wkhost.hooks.verdict import Outcome

RULES = BreakerRules(failures=3, window_s=5.0, pause_s=1.0, longest_pause_s=4.0)
PROBE_S = 2.0

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fail", "verdict", "ask", "probe fails", "probe answers", "hurry"]),
        st.sampled_from([0.0, 0.004, 0.02, 0.5, 1.0, 3.0, 6.0]),
        st.sampled_from([Outcome.CRASH, Outcome.TIMEOUT, Outcome.OVERLOAD]),
    ),
    max_size=60,
)


@dataclass
class Model:
    """The rules in the words of the module's docstring, with no thought for speed."""

    state: str = "closed"
    incidents: list[tuple[float, int]] = field(default_factory=list)
    """(time, verdicts so far) of failures since it last closed, bursts counted once."""
    opened_at: list[float] = field(default_factory=list)
    pause: float = 0.0
    retry_at: float = 0.0
    probe_until: float = 0.0
    verdicts: int = 0

    def fail(self, now: float) -> None:
        if self.state != "closed":
            return
        if self.incidents and now - self.incidents[-1][0] < MIN_GAP_S:
            return
        self.incidents.append((now, self.verdicts))
        last = self.incidents[-RULES.failures :]
        together = len(last) == RULES.failures and now - last[0][0] <= RULES.window_s
        if together and self.verdicts - last[0][1] <= RULES.failures:
            again = bool(self.opened_at) and now - self.retry_at <= RULES.window_s
            self.open(now, self.pause * 2 if again else RULES.pause_s)

    def open(self, now: float, pause: float) -> None:
        self.state = "open"
        self.pause = min(pause, RULES.longest_pause_s)
        self.retry_at = now + self.pause
        self.opened_at.append(now)

    def may_probe(self, now: float) -> bool:
        if self.state == "half_open" and now >= self.probe_until:
            self.open(self.probe_until, self.pause * 2)
        return self.state == "open" and now >= self.retry_at


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_a_breaker_does_what_the_model_does(
    steps: list[tuple[str, float, Outcome]],
) -> None:
    changes: list[BreakerState] = []
    breaker = Breaker(RULES, lambda changed: changes.append(changed.state))
    model = Model()
    now, probe_id = 100.0, 0
    for deed, pause, outcome in steps:
        now += pause
        match deed:
            case "fail":
                breaker.failed(0, outcome, now, model.verdicts)
                model.fail(now)
            case "verdict":
                model.verdicts += 1
                breaker.succeeded(0, now)
            case "ask":
                due = model.may_probe(now)
                assert breaker.is_due(now) == due
                if due:
                    probe_id += 1
                    breaker.probe(probe_id, now + PROBE_S)
                    model.state, model.probe_until = "half_open", now + PROBE_S
            case "probe fails":
                breaker.failed(probe_id, outcome, now, model.verdicts)
                if model.state == "half_open":
                    model.open(now, model.pause * 2)
                elif not breaker.closed or model.state == "closed":
                    model.fail(now)
            case "probe answers":
                breaker.succeeded(probe_id, now)
                if model.state == "half_open":
                    model.state, model.incidents, model.retry_at = "closed", [], now
            case "hurry":
                breaker.hurry(now)
                if model.state == "open":
                    model.retry_at = min(model.retry_at, now)
        assert breaker.state.name.lower() == model.state
        assert breaker.closed == (model.state == "closed")
        assert breaker.opened == len(model.opened_at)
    _only_legal(changes)


def _only_legal(changes: list[BreakerState]) -> None:
    closed, half, opened = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
    legal = {(closed, opened), (opened, half), (half, opened), (half, closed)}
    before = closed
    for state in changes:
        assert (before, state) in legal
        before = state
