"""When a version is worse than the one before, and when that is only bad luck."""

from __future__ import annotations

import pytest

from wkhost.hooks.records import BOUNDS_S, CallRecords
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome
from wkhost.plugin_host.probation import Figures, figures, judge


def timed(calls: int, bucket: int, failures: int = 0) -> Figures:
    durations = [0] * (len(BOUNDS_S) + 1)
    durations[bucket] = calls
    return Figures(calls, failures, tuple(durations))


GOOD = timed(1000, 3)


@pytest.mark.parametrize(
    ("before", "after", "deaths", "why"),
    [
        (GOOD, GOOD, 0, ""),
        (GOOD, Figures(), 1, ""),
        (GOOD, Figures(), 2, "it died 2 times"),
        (GOOD, timed(100, 3, failures=4), 0, ""),
        (GOOD, timed(19, 3, failures=19), 0, ""),
        (GOOD, timed(100, 3, failures=5), 0, ""),
        (GOOD, timed(100, 3, failures=6), 0, "6 of 100 calls failed"),
        (timed(1000, 3, failures=100), timed(100, 3, failures=14), 0, ""),
        (Figures(), timed(100, 3, failures=6), 0, "6 of 100 calls failed"),
        (GOOD, timed(100, 6), 0, ""),
        (GOOD, timed(100, 9), 0, "one call in ten takes 100.0 ms or more, before it was 1.0 ms"),
        (GOOD, timed(49, 9), 0, ""),
        (timed(49, 3), timed(100, 9), 0, ""),
        (timed(1000, 8), timed(1000, 9), 0, ""),
        (GOOD, timed(100, len(BOUNDS_S)), 0, "one call in ten takes 4000.0 ms or more"),
    ],
)
def test_verdicts(before: Figures, after: Figures, deaths: int, why: str) -> None:
    found = judge(before, after, deaths)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_figures_are_of_one_version_over_all_hooks() -> None:
    records = CallRecords()
    for version, hook, answer in (
        ("1", "send", CONTINUE),
        ("2", "send", CONTINUE),
        ("2", "send", Failure(Outcome.TIMEOUT, "")),
        ("2", "receive", Failure(Outcome.CRASH, "")),
    ):
        record = records.record("a", hook, version)
        record.count(answer)
        record.took(0.0002)
    found = figures(records.of("a"), "2")
    assert (found.calls, found.failures, sum(found.durations)) == (3, 2, 3)
    assert found.minus(found) == Figures()
