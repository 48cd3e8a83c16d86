"""The wheel against a sorted list, and its slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wkhost.gateway.timers import TimerWheel


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(1, 20))
def test_everything_comes_up_once_in_order_and_never_early(
    deadlines: list[float], limit: int
) -> None:
    wheel = TimerWheel(0.5)
    for conn_id, deadline in enumerate(deadlines):
        wheel.file(conn_id, wheel.slot_of(deadline))
    seen: list[int] = []
    now = 0.0
    while now < 52:
        before = [n for n, deadline in enumerate(deadlines) if deadline > now]
        while entries := wheel.due(now, limit):
            assert len(entries) <= limit
            seen += [conn_id for _, conn_id in entries]
        assert not set(seen) & set(before)
        now += 0.25
    assert sorted(seen) == list(range(len(deadlines)))
    slots = [wheel.slot_of(deadlines[conn_id]) for conn_id in seen]
    assert slots == sorted(slots)
    assert len(wheel) == 0


def test_deadline_fires_at_most_one_tick_late() -> None:
    wheel = TimerWheel(0.1)
    wheel.file(1, wheel.slot_of(10.01))
    assert wheel.due(10.01, 10) == []
    assert [conn_id for _, conn_id in wheel.due(10.12, 10)] == [1]
