"""Brakes on real processes: what they are held to is what they use, and they run on afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.brakes import GroupBrake, SignalBrake
from wkhost.plugin_host.sandbox.cgroups import Group, lent_cpu_share, open_groups
from wkhost.plugin_host.sandbox.slices import LONGEST_STOP_S
from wkhost.plugin_host.sandbox.tree import Tree

FIRST = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans become its children
if os.fork() == 0:
    exec(sys.argv[1])
while True:
    os.wait()
"""
"""Does what the first process of a sandbox does."""
PROGRAMS = {
    "alone": "while True: pass",
    "with a child": "os.fork()\nwhile True: pass",
    "an orphan": "if os.fork(): os._exit(0)\nwhile True: pass",
    "one after the other": """
while True:
    until = time.process_time() + 0.02
    while time.process_time() < until: pass
    if os.fork(): os._exit(0)
""",
}
SHARE = 0.1
WINDOW_S = 1.0
TIMEOUT_S = 10.0
ALL = frozenset(os.sched_getaffinity(0))
CORNER = frozenset({max(ALL)})


@pytest.fixture(params=PROGRAMS)
def first(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process that started others, which spin."""
    command = [sys.executable, "-c", FIRST, PROGRAMS[request.param]]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            wait_until(lambda: cpu_s(process.pid) > 0)
            yield process.pid
        finally:
            os.killpg(process.pid, 9)


def wait_until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.005)


def used_in_window(first: int) -> float:
    """Return cores used over a window of real time."""
    began, before = time.monotonic(), cpu_s(first)
    time.sleep(WINDOW_S)
    return (cpu_s(first) - before) / (time.monotonic() - began)


def held(first: int) -> bool:
    """Whether they use little in one of three windows; a busy machine may disturb a single one."""
    return any(used_in_window(first) < 3 * SHARE for _ in range(3))


def cpu_s(first: int) -> float:
    """Return what the descendants of a process have used, the dead ones included."""
    process = psutil.Process(first)
    there = process.cpu_times()
    total = there.children_user + there.children_system
    for each in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.cpu_times().user + each.cpu_times().system
    return total


def stopped(first: int) -> bool:
    """Whether one of the descendants of a process is."""
    return any(
        Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
        for pid in Tree(first).pids()
    )


def cpus(first: int) -> set[frozenset[int]]:
    """Return on which CPUs the descendants of a process may run."""
    return {frozenset(os.sched_getaffinity(pid)) for pid in Tree(first).pids()}


def program() -> psutil.Process:
    """Return the one that a brake by signals has started."""
    (found,) = (each for each in psutil.Process().children() if "slices" in str(each.cmdline()))
    return found


@pytest.fixture
def brake(first: int) -> Iterator[SignalBrake]:
    made = SignalBrake(Tree(first))
    yield made
    made.release()


def test_signals_hold_processes_to_their_share(first: int, brake: SignalBrake) -> None:
    brake.slow(SHARE)
    assert held(first)
    assert cpus(first) == {CORNER}
    began = time.monotonic()
    brake.release()
    assert time.monotonic() - began < LONGEST_STOP_S / 2, "the loop waits for it"
    assert not stopped(first)
    assert cpus(first) == {ALL}
    assert used_in_window(first) > 3 * SHARE


def test_a_new_share_holds_at_once(first: int, brake: SignalBrake) -> None:
    brake.slow(0.9)
    brake.slow(SHARE)
    assert held(first)


def test_a_program_of_signals_that_was_killed_is_replaced(first: int, brake: SignalBrake) -> None:
    brake.slow(SHARE)
    killed = program()
    wait_until(lambda: cpus(first) == {CORNER})
    killed.kill()
    wait_until(lambda: killed.status() == psutil.STATUS_ZOMBIE)
    brake.slow(SHARE)
    assert held(first)


def test_the_program_of_signals_ends_with_the_processes(first: int, brake: SignalBrake) -> None:
    brake.slow(SHARE)
    ends = program()
    os.killpg(first, 9)
    wait_until(lambda: ends.status() == psutil.STATUS_ZOMBIE)


def test_the_program_of_signals_ends_with_the_server(first: int) -> None:
    code = (
        "import signal, sys\n"
        "from wkhost.plugin_host.sandbox.brakes import SignalBrake\n"
        "from wkhost.plugin_host.sandbox.tree import Tree\n"
        f"SignalBrake(Tree(int(sys.argv[1]))).slow({SHARE})\n"
        "print(flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        (program,) = psutil.Process(server.pid).children()
        server.kill()
    psutil.wait_procs([program], timeout=TIMEOUT_S)
    assert not program.is_running()


def test_nothing_is_stopped_before_the_process_is_known() -> None:
    brake = SignalBrake(Tree())
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


def test_a_group_is_held_to_its_share(group: Group, first: int) -> None:
    group.attach(first)
    for pid in Tree(first).pids():
        with contextlib.suppress(PluginError):  # it has just ended
            group.attach(pid)
    brake = GroupBrake(group, Tree(first), 1.0)
    brake.slow(SHARE)
    assert held(first)
    assert cpus(first) == {CORNER}
    periods, stops = brake.stopped_periods()
    assert 0 < stops <= periods
    brake.release()
    assert cpus(first) == {ALL}
    assert used_in_window(first) > 3 * SHARE


def test_what_comes_later_is_kept_in_the_corner_too(group: Group) -> None:
    brake = GroupBrake(group, Tree(), 1.0)
    brake.slow(SHARE)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            group.attach(process.pid)
            assert {frozenset(os.sched_getaffinity(process.pid))} == {ALL}
            brake.slow(SHARE)
            assert {frozenset(os.sched_getaffinity(process.pid))} == {CORNER}
            brake.slow(len(ALL))
            assert {frozenset(os.sched_getaffinity(process.pid))} == {ALL}
        finally:
            process.kill()


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
