"""Calls of a plugin beyond its rate wait; those within it never do."""

from __future__ import annotations

from wkhost.plugin_host.grpc.budget import Pace


def test_a_burst_passes_at_once_and_what_follows_keeps_the_rate() -> None:
    pace = Pace(burst=10, per_s=100)
    waits = [pace.take(1000.0) for _ in range(30)]
    assert max(waits[:10]) < 1e-9
    assert [round(each, 3) for each in waits[10:13]] == [0.01, 0.02, 0.03]
    assert round(waits[-1], 3) == 0.2


def test_a_steady_caller_below_the_rate_never_waits() -> None:
    pace = Pace(burst=2, per_s=100)
    assert max(pace.take(1000.0 + number * 0.011) for number in range(1000)) < 1e-9


def test_a_pause_gives_back_no_more_than_the_burst() -> None:
    pace = Pace(burst=5, per_s=100)
    for _ in range(50):
        pace.take(1000.0)
    waits = [pace.take(2000.0) for _ in range(7)]
    assert max(waits[:5]) < 1e-6
    assert waits[5] > 0.009
