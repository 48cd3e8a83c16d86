"""Brakes on real processes: what they are held to is what they use, and they run on afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.brakes import LONGEST_STOP_S, GroupBrake, SignalBrake
from wkhost.plugin_host.sandbox.cgroups import Group, lent_cpu_share, open_groups

SPIN = "import os\n{fork}\nwhile True: pass"
SHARE = 0.1
WINDOW_S = 1.0
ALL = frozenset(os.sched_getaffinity(0))
CORNER = frozenset({max(ALL)})


@pytest.fixture(params=["", "os.fork()"], ids=["alone", "with a child"])
def spinning(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    code = SPIN.format(fork=request.param)
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            children(process.pid)  # from now on they are all there
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def used_in_window(pid: int) -> float:
    """Return cores used over a window of real time."""
    began, before = time.monotonic(), cpu_s(pid)
    time.sleep(WINDOW_S)
    return (cpu_s(pid) - before) / (time.monotonic() - began)


def held(pid: int) -> bool:
    """Whether it uses little in one of three windows; a busy machine may disturb a single one."""
    return any(used_in_window(pid) < 3 * SHARE for _ in range(3))


def cpu_s(pid: int) -> float:
    """Return what a process and its descendants have used."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def stopped(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    return state == b"T"


def cpus(pid: int) -> set[frozenset[int]]:
    """Return on which CPUs the threads of a process and of its child may run."""
    found = set()
    for each in [pid, *children(pid)]:
        for thread in Path(f"/proc/{each}/task").iterdir():
            found.add(frozenset(os.sched_getaffinity(int(thread.name))))
    return found


def test_signals_hold_processes_to_their_share(spinning: subprocess.Popen[bytes]) -> None:
    brake = SignalBrake(lambda: spinning.pid)
    brake.slow(SHARE)
    assert held(spinning.pid)
    began = time.monotonic()
    brake.release()
    assert time.monotonic() - began < LONGEST_STOP_S / 2, "the loop waits for it"
    assert not stopped(spinning.pid)
    assert used_in_window(spinning.pid) > 3 * SHARE


def test_the_thread_of_signals_ends_with_the_process(spinning: subprocess.Popen[bytes]) -> None:
    brake = SignalBrake(lambda: spinning.pid)
    brake.slow(SHARE)
    os.killpg(spinning.pid, 9)
    spinning.wait()
    brake.release()


def test_nothing_is_stopped_before_the_process_is_known() -> None:
    brake = SignalBrake(lambda: 0)
    brake.slow(SHARE)
    assert brake.used_s() == 0.0
    brake.release()


@pytest.fixture
def group() -> Iterator[Group]:
    try:
        groups = open_groups()
    except (PluginError, OSError) as error:
        pytest.skip(f"no control groups here: {error}")
    made = groups.create("brakes-test.1", Limits())
    yield made
    made.remove()


def test_a_group_is_held_to_its_share(group: Group, spinning: subprocess.Popen[bytes]) -> None:
    for pid in [spinning.pid, *children(spinning.pid)]:
        group.attach(pid)
    brake = GroupBrake(group, 1.0)
    brake.slow(SHARE)
    assert held(spinning.pid)
    assert cpus(spinning.pid) == {CORNER}
    periods, stops = brake.stopped_periods()
    assert 0 < stops <= periods
    brake.release()
    assert cpus(spinning.pid) == {ALL}
    assert used_in_window(spinning.pid) > 3 * SHARE


def test_what_comes_later_is_kept_in_the_corner_too(group: Group) -> None:
    brake = GroupBrake(group, 1.0)
    brake.slow(SHARE)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            group.attach(process.pid)
            assert cpus(process.pid) == {ALL}
            brake.slow(SHARE)
            assert cpus(process.pid) == {CORNER}
            brake.slow(len(ALL))
            assert cpus(process.pid) == {ALL}
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Return the child of a forking process, waiting until it is there."""
    wanted = Path(f"/proc/{pid}/cmdline").read_bytes().count(b"fork")
    while True:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        if len(text.split()) >= wanted:
            return [int(each) for each in text.split()]
        time.sleep(0.01)


def test_what_is_started_meanwhile_is_born_in_the_group(group: Group) -> None:
    with lent_cpu_share(group), subprocess.Popen(["sleep", "60"]) as process:
        try:
            there = Path(f"/proc/{process.pid}/cgroup").read_text()
            ours = Path("/proc/thread-self/cgroup").read_text()
        finally:
            process.kill()
    assert (group.version == 2) or group.name in there
    assert ours == there, "the calling thread stepped aside meanwhile"
    assert group.name not in Path("/proc/thread-self/cgroup").read_text()
