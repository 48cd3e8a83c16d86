"""Who gives way when the machine is short of CPU, and how far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host.fair import (
    FORGIVEN_LOOKS,
    GREEDY_LOOKS,
    LEAST_SHARE,
    LEAST_START_SHARE,
    LOOK_EVERY_S,
    START_S,
    FairShare,
    Machine,
)

CORES = 2


class _Brake:
    """Remembers what it was told; its process uses what the test says."""

    def __init__(self) -> None:
        self.used = 0.0
        self.periods = (0, 0)
        self.share: float | None = None

    def used_s(self) -> float:
        return self.used

    def stopped_periods(self) -> tuple[int, int]:
        return self.periods

    def slow(self, share: float) -> None:
        self.share = share

    def release(self) -> None:
        self.share = None


class _World:
    """A plugin on a machine whose other users take `others` cores."""

    def __init__(self, *, limit: float = 1.0, polite: bool = False, cores: int = CORES) -> None:
        self.brake = _Brake()
        self.waited_s = 0.0
        self._now = 0.0
        self._cores = cores
        self._idle = self._busy = 0.0
        self.machine = Machine(self._cpu_times, cores)
        self.fair = FairShare(
            self.brake,
            self.machine,
            name="one g1",
            limit=limit,
            waited_for_s=lambda: self.waited_s,
            polite=polite,
        )
        self.fair.look(0.0)

    def _cpu_times(self) -> list[float]:
        """As psutil tells them: in ticks, guests last."""
        busy, idle = round(self._busy, 2), round(self._idle, 2)
        return [busy, 0.0, 0.0, idle, 0.0, 0.0, 0.0, 0.0, 77.0, 0.0]

    def go_on(
        self,
        looks: int,
        *,
        wants: float,
        others: float,
        waited: float = 0.0,
        stopped: float = 0.0,
    ) -> None:
        """Let time pass: the plugin takes what it wants and may have, in cores."""
        for _ in range(looks):
            takes = min(
                wants, self._cores - others if self.brake.share is None else self.brake.share
            )
            self._pass(LOOK_EVERY_S, takes, others)
            self.waited_s += waited * LOOK_EVERY_S
            periods, stops = self.brake.periods
            self.brake.periods = periods + 25, stops + int(25 * stopped)
            self.fair.look(self._now)

    def look_after_others(self, *, takes: float, others: float) -> None:
        """Look once more, where the machine was read half a look ago for somebody else."""
        self._pass(LOOK_EVERY_S / 2, takes, others)
        self.machine.look(self._now)
        self._pass(LOOK_EVERY_S / 2, takes, others)
        self.fair.look(self._now)

    def _pass(self, seconds: float, takes: float, others: float) -> None:
        self._now += seconds
        self.brake.used += takes * seconds
        self._busy += (takes + others) * seconds
        self._idle += (self._cores - takes - others) * seconds


@pytest.fixture
def world() -> _World:
    world = _World()
    world.fair.serves()
    return world


def test_one_that_works_on_its_own_account_gives_way_on_a_short_machine(world: _World) -> None:
    world.go_on(GREEDY_LOOKS + 1, wants=1.0, others=1.2)
    assert world.brake.share is not None
    world.go_on(8, wants=1.0, others=1.2)
    # What is left besides the headroom is less than the least share.
    assert world.brake.share == pytest.approx(LEAST_SHARE)


def test_it_gets_what_is_left_besides_the_headroom(world: _World) -> None:
    world.go_on(12, wants=1.0, others=0.8)
    assert world.brake.share == pytest.approx(2 - 0.8 - 1, rel=0.2)


def test_it_is_held_steadily_where_it_runs_in_one_look_and_stands_in_the_next(
    world: _World,
) -> None:
    world.go_on(4, wants=1.0, others=0.8)
    found = []
    for look in range(40):
        world.look_after_others(takes=0.4 if look % 2 else 0.0, others=0.8)
        assert world.brake.share is not None
        found.append(world.brake.share)
    assert found[20:] == pytest.approx([2 - 0.8 - 1] * 20, abs=0.05)


def test_nobody_gives_way_where_there_is_room() -> None:
    world = _World(cores=4)
    world.fair.serves()
    world.go_on(40, wants=1.0, others=1.9)
    assert world.brake.share is None


def test_work_that_messages_wait_for_is_not_minded(world: _World) -> None:
    world.go_on(40, wants=0.9, others=1.1, waited=0.95)
    assert world.brake.share is None


def test_one_busy_look_is_forgiven(world: _World) -> None:
    for _ in range(10):
        world.go_on(1, wants=1.0, others=1.2)
        world.go_on(1, wants=0.0, others=1.2)
    assert world.brake.share is None


def test_one_that_its_quota_stops_gives_way_even_where_messages_wait(world: _World) -> None:
    world.go_on(GREEDY_LOOKS + 1, wants=1.0, others=0.9, waited=1.0, stopped=0.9)
    assert world.brake.share is not None


def test_one_that_takes_more_than_it_may_is_held_to_its_limit() -> None:
    world = _World(limit=0.5)
    world.fair.serves()
    world.go_on(GREEDY_LOOKS + 2, wants=1.0, others=0.1)
    assert world.brake.share == pytest.approx(0.5)


def test_one_that_wants_less_is_free_again_after_a_while(world: _World) -> None:
    world.go_on(6, wants=1.0, others=1.2)
    assert world.brake.share is not None
    world.go_on(FORGIVEN_LOOKS - 1, wants=0.01, others=1.2)
    assert world.brake.share is not None
    world.go_on(2, wants=0.01, others=1.2)
    assert world.brake.share is None


def test_a_start_counts_against_nobody() -> None:
    world = _World()
    world.go_on(int(START_S / LOOK_EVERY_S) - 1, wants=1.0, others=1.5)
    assert world.brake.share is None
    world.fair.serves()
    world.go_on(1, wants=1.0, others=1.5)
    world.go_on(20, wants=0.1, others=1.5)
    assert world.brake.share is None


def test_who_never_finishes_its_start_is_treated_as_the_others() -> None:
    world = _World()
    world.go_on(int(START_S / LOOK_EVERY_S) + 5, wants=1.0, others=1.2)
    assert world.brake.share is not None


def test_a_polite_start_takes_what_is_left_until_it_serves() -> None:
    world = _World(polite=True)
    world.go_on(4, wants=1.0, others=1.3)
    assert world.brake.share == pytest.approx(LEAST_START_SHARE)
    world.fair.serves()
    assert world.brake.share is None


def test_a_polite_start_is_over_after_a_while() -> None:
    world = _World(polite=True)
    world.go_on(int(START_S / LOOK_EVERY_S) + 1, wants=0.2, others=1.3)
    assert world.brake.share is None


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 2), st.floats(0, CORES), st.floats(0, 3), st.floats(0, 1), st.booleans()
        ),
        max_size=60,
    ),
    limit=st.floats(0.2, 2.0),
    polite=st.booleans(),
)
def test_what_it_may_have_stays_within_bounds(
    steps: list[tuple[float, float, float, float, bool]],
    limit: float,
    polite: bool,
) -> None:
    world = _World(limit=limit, polite=polite)
    for wants, others, waited, stopped, serves in steps:
        world.go_on(1, wants=min(wants, limit), others=others, waited=waited, stopped=stopped)
        if serves:
            world.fair.serves()
        share = world.brake.share
        assert world.fair.share == share
        assert share is None or LEAST_SHARE <= share <= max(limit, LEAST_START_SHARE)
