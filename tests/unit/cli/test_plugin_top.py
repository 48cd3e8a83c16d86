"""The figures of two looks as rates and quantiles."""

from __future__ import annotations

import pytest

from wkhost.cli.plugin_rates import quantile_ms, rows
from wkhost.link.contract import AllPluginFigures, HookFigures, PluginFigures

BOUNDS_S = [0.001, 0.002, 0.004]


def look(
    at: float, counts: list[int], *, pid: int = 1, cpu_s: float = 0.0, version: str = "1"
) -> AllPluginFigures:
    hook = HookFigures(
        hook="send",
        version=version,
        outcomes={"continue": sum(counts), "crash": 0},
        durations=counts,
        total_s=0.0,
        short_circuits=0,
        breaker_opened=0,
        breaker="closed",
    )
    plugin = PluginFigures(
        "p",
        version,
        "running",
        1,
        pid,
        0,
        1024,
        cpu_s,
        log_lines=0,
        log_lines_dropped=0,
        hooks=[hook],
    )
    return AllPluginFigures(at, BOUNDS_S, [plugin])


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 0, 0, 0], 0.5, 0.5),
        ([0, 10, 0, 0], 0.5, 1.5),
        ([50, 49, 1, 0], 0.99, 2.0),
        ([0, 0, 0, 3], 0.5, 4.0),
    ],
)
def test_quantiles_lie_within_their_bucket(
    counts: list[int], share: float, expected: float | None
) -> None:
    assert quantile_ms(counts, BOUNDS_S, share) == expected


def test_rates_are_of_the_time_between_the_looks() -> None:
    (row,) = rows(look(10.0, [5, 0, 0, 0], cpu_s=1.0), look(12.0, [5, 30, 0, 0], cpu_s=1.5))
    (hook,) = row.hooks
    assert (hook.calls_per_s, hook.outcomes["continue"], hook.p50_ms) == (15.0, 30, 1.5)
    assert row.cpu_percent == 25.0


def test_a_new_process_and_a_new_version_start_from_zero() -> None:
    (row,) = rows(
        look(10.0, [500, 0, 0, 0], pid=1, cpu_s=100.0),
        look(11.0, [4, 0, 0, 0], pid=2, cpu_s=0.5, version="2"),
    )
    assert row.cpu_percent == 50.0
    assert row.hooks[0].calls_per_s == 4.0
