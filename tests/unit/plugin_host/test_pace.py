"""Calls of a plugin beyond its rate wait; those within it never do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host.pace import Pace


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


@given(st.floats(1, 5000), st.floats(1, 5000), st.lists(st.integers(1, 50), max_size=30))
def test_what_is_left_does_not_wait_and_one_more_does(
    burst: float, per_s: float, taken: list[int]
) -> None:
    pace = Pace(burst, per_s)
    for amount in taken:
        pace.take(1000.0, amount)
    left = pace.left(1000.0)
    assert 0 <= left <= burst
    assert not left or pace.take(1000.0, left) < 1e-6
    assert pace.take(1000.0, 1 + 1e-3) > 0
