"""Message ids never repeat: not when the clock steps, not over restarts, not under any mix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.clock import CEILING_AHEAD_MS, EPOCH_MS, Clock, MessageIds
from wkhost.errors import StoreBusyError

START_MS = EPOCH_MS + 500_000_000_000


class FakeClock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms * 1_000_000 + 999_999


def started(clock: FakeClock, ceiling_ms: int = 0, node_id: int = 1001) -> MessageIds:
    ids = MessageIds(node_id, ceiling_ms, clock)
    ids.raised(ids.reserve())
    return ids


def test_an_id_holds_time_node_and_step() -> None:
    clock = FakeClock()
    ids = started(clock)
    first, second = ids.next(), ids.next()
    assert (first >> 22) + EPOCH_MS == START_MS
    assert (first >> 12) & 1023 == 1001
    assert (first & 0xFFF, second & 0xFFF) == (0, 1)
    clock.ms += 7
    assert (ids.next() >> 22) + EPOCH_MS == START_MS + 7


@pytest.mark.parametrize("node_id", [0, 1, 1023])
def test_more_ids_than_steps_in_a_millisecond_run_into_the_next_one(node_id: int) -> None:
    ids = started(FakeClock(), node_id=node_id)
    given_out = [ids.next() for _ in range(3 * 4096)]
    assert given_out == sorted(set(given_out))
    assert {(each >> 12) & 1023 for each in given_out} == {node_id}
    assert (given_out[-1] >> 22) - (given_out[0] >> 22) == 2
    assert max(given_out) < 1 << 63


def test_nothing_is_given_out_before_a_ceiling_is_durable() -> None:
    ids = MessageIds(1, 0, FakeClock())
    assert ids.needs_ceiling()
    with pytest.raises(StoreBusyError):
        ids.next()
    ids.raised(ids.reserve())
    assert not ids.needs_ceiling()
    ids.next()


def test_the_first_id_after_an_idle_time_is_no_older_than_the_ceiling_s_rise() -> None:
    clock = FakeClock()
    ids = started(clock)
    clock.ms += 60_000
    assert (ids.next() >> 22) + EPOCH_MS == START_MS
    ids.raised(ids.reserve())
    raised_ms = clock.ms
    clock.ms += 60_000
    assert (ids.next() >> 22) + EPOCH_MS == raised_ms


def test_the_ceiling_is_asked_for_while_half_of_the_reserve_is_left() -> None:
    clock = FakeClock()
    ids = started(clock)
    clock.ms += CEILING_AHEAD_MS // 2 - 1
    assert not ids.needs_ceiling()
    clock.ms += 1
    assert ids.needs_ceiling()
    assert ids.reserve() == clock.ms + CEILING_AHEAD_MS


def test_a_clock_far_past_the_ceiling_does_not_stop_the_ids() -> None:
    clock = FakeClock()
    ids = started(clock)
    before = ids.next()
    clock.ms += 3_600_000
    assert ids.next() == before + 1
    ids.raised(ids.reserve())
    assert (ids.next() >> 22) + EPOCH_MS == clock.ms


def test_ids_end_at_the_ceiling_and_go_on_when_it_rises() -> None:
    clock = FakeClock()
    ids = MessageIds(5, 0, clock)
    ids.raised(clock.ms + 2)
    given_out = [ids.next() for _ in range(2 * 4096)]
    with pytest.raises(StoreBusyError):
        ids.next()
    ids.raised(clock.ms + 3)
    assert ids.next() > given_out[-1]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("clock"), st.integers(-10_000_000, 10_000_000)),
        st.tuples(st.just("take"), st.integers(1, 5000)),
        st.tuples(st.just("persist"), st.just(0)),
        st.tuples(st.just("restart"), st.integers(-10_000_000, 10_000_000)),
    ),
    max_size=30,
)


@given(steps)
def test_no_mix_of_clock_steps_and_restarts_repeats_an_id(script: list[tuple[str, int]]) -> None:
    clock = FakeClock()
    durable = 0
    ids = MessageIds(77, durable, clock)
    last = -1
    for action, amount in script:
        if action == "clock":
            clock.ms += amount
        elif action == "persist":
            durable = ids.reserve()
            ids.raised(durable)
        elif action == "restart":
            clock.ms += amount
            ids = MessageIds(77, durable, clock)
        else:
            for _ in range(amount):
                try:
                    number = ids.next()
                except StoreBusyError:
                    break
                assert number > last
                assert (number >> 22) + EPOCH_MS < durable
                last = number


@pytest.mark.parametrize(("node_id", "ceiling_ms"), [(-1, 0), (1024, 0), (1, -1), (1, 1 << 62)])
def test_impossible_numbers_are_refused(node_id: int, ceiling_ms: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        MessageIds(node_id, ceiling_ms, FakeClock())


def test_the_real_clock_has_matching_units() -> None:
    clock = Clock()
    assert abs(clock.wall_ns() / 1e9 - clock.wall_s()) < 1
    assert abs(clock.wall_ms() / 1e3 - clock.wall_s()) < 1
