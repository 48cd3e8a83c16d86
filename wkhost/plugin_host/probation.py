"""Is a version that took over worse than the one before? Judged from counts, by fixed rules. Pure.

A version is worse when it died twice, when clearly more of its calls fail, or when nine of ten of
its calls take several times as long. Few calls prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from wkhost.hooks.records import BOUNDS_S, CallRecord
from wkhost.hooks.verdict import Outcome

DEATHS = 2
MIN_CALLS = 20
MIN_FAILURES = 5
MORE_FAILURES = 0.05
"""Share of failed calls above that of the version before."""
MIN_TIMED = 50
SLOWER = 4.0
SLOW_S = 0.01
"""Calls that are faster than this are fast enough, whatever was before."""
_FAILED = (Outcome.CRASH, Outcome.TIMEOUT, Outcome.OVERLOAD)


class Figures(msgspec.Struct, frozen=True):
    """What one version did, all hooks together. `durations` is by bucket of `BOUNDS_S`."""

    calls: int = 0
    failures: int = 0
    durations: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)

    def minus(self, earlier: Figures) -> Figures:
        pairs = zip(self.durations, earlier.durations, strict=True)
        return Figures(
            self.calls - earlier.calls,
            self.failures - earlier.failures,
            tuple(now - before for now, before in pairs),
        )


def figures(records: Iterable[CallRecord], version: str) -> Figures:
    """Return what a version did since the server started."""
    calls = failures = 0
    durations = [0] * (len(BOUNDS_S) + 1)
    for record in records:
        if record.version != version:
            continue
        outcomes = record.outcomes
        calls += sum(outcomes.values())
        failures += sum(outcomes[outcome] for outcome in _FAILED)
        durations = [a + b for a, b in zip(durations, record.durations, strict=True)]
    return Figures(calls, failures, tuple(durations))


def judge(before: Figures, after: Figures, deaths: int) -> str:
    """Return why the version is to be taken back, in one sentence; empty when it may stay."""
    if deaths >= DEATHS:
        return f"it died {deaths} times"
    if after.calls >= MIN_CALLS and after.failures >= MIN_FAILURES:
        share = after.failures / after.calls
        allowed = (before.failures / before.calls if before.calls else 0.0) + MORE_FAILURES
        if share > allowed:
            return f"{after.failures} of {after.calls} calls failed"
    slow, fast = _ninth_tenth(after.durations), _ninth_tenth(before.durations)
    if slow is not None and fast is not None and slow > max(SLOW_S, SLOWER * fast):
        return (
            f"one call in ten takes {slow * 1000:.1f} ms or more, "
            f"before it was {fast * 1000:.1f} ms"
        )
    return ""


def _ninth_tenth(durations: Sequence[int]) -> float | None:
    """Return the upper bound of the bucket that nine of ten calls stay within."""
    total = sum(durations)
    if total < MIN_TIMED:
        return None
    seen = 0
    for bound, count in zip((*BOUNDS_S, 2 * BOUNDS_S[-1]), durations, strict=True):
        seen += count
        if seen >= 0.9 * total:
            return bound
    return None
