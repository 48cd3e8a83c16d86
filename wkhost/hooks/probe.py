"""What may still reach a plugin whose breaker is not closed: one probe at a time.

A message whose failure is decided closed or held may be the probe. One that would then be decided
open never is, or the probe would let a message pass unseen: there the plugin is asked how it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

from wkhost.hooks.records import HookLine
from wkhost.hooks.target import Answer, Target
from wkhost.hooks.verdict import Continue, Failure, Outcome, Policy

HEALTH_BUDGET_S = 1.0
_health_ids = count(1 << 60)
"""Probes that are no message, apart from all call ids."""


def admit_probe(
    target: Target, line: HookLine, policy: Policy, call_id: int, clock: Callable[[], float]
) -> bool:
    """Whether the call may be issued: True makes it the probe. Call only while not closed."""
    breaker = line.breaker
    if breaker.is_due(clock()):
        if policy is not Policy.OPEN:
            # The dispatcher ends every call within its budget.
            breaker.probe(call_id, math.inf)
            return True
        _ask_health(target, line, clock)
    line.record.short_circuits += 1
    return False


def _ask_health(target: Target, line: HookLine, clock: Callable[[], float]) -> None:
    probe_id = next(_health_ids)
    now = clock()
    line.breaker.probe(probe_id, now + HEALTH_BUDGET_S)

    def reply(answer: Answer) -> None:
        if isinstance(answer, Continue):
            line.breaker.succeeded(probe_id, clock())
        else:
            outcome = answer.outcome if isinstance(answer, Failure) else Outcome.CRASH
            line.failed(probe_id, outcome, clock())

    if not target.check_health(HEALTH_BUDGET_S, reply):
        line.failed(probe_id, Outcome.OVERLOAD, now)
