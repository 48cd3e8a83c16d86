"""The faults of a plugin and of the server, each tried under traffic."""

from __future__ import annotations

import os
import signal
import time
from array import array

import trio

from wkhost.bench.errors import BenchError
from wkhost.bench.faults.guard import SPIN, write_guard
from wkhost.bench.faults.site import POLL_S
from wkhost.bench.faults.trial import Trial
from wkhost.bench.samples import percentiles

_UNAIDED_S = 15.0
"""How long the server may take to find out by itself that a plugin will not come back."""
_QUIET_S = 2.0
_CRASHING_S = 3.0


async def killed(trial: Trial) -> None:
    """SIGKILL, with calls held in flight by a SIGSTOP a moment before."""
    async with trial.under_load():
        async for _ in trial.rounds():
            pid = (await trial.site.running_plugin()).pid
            os.kill(pid, signal.SIGSTOP)
            await trial.hold_calls()
            held = trial.traffic.unanswered()
            at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await trial.note_decisions(at, [fate for fate in held if not fate.reason])
            await trial.note_serving(at)
        await trial.site.running_plugin()


async def stopped(trial: Trial) -> None:
    """SIGSTOP for a while, then SIGCONT."""
    async with trial.under_load():
        async for _ in trial.rounds():
            status = await trial.site.running_plugin()
            at = time.monotonic()
            os.kill(status.pid, signal.SIGSTOP)
            await trio.sleep(trial.options.hang_s)
            woken = time.monotonic()
            await _continue(trial, status.pid)
            await trial.note_decisions(at, trial.due_between(at, woken))
            await trial.note_serving(woken)
        await trial.site.running_plugin()


async def _continue(trial: Trial, pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        trial.notes["replaced while it hung"] = "yes"


async def spinning(trial: Trial) -> None:
    """A message that its handler never ends with, and that keeps the process busy for ever."""
    trial.notes["reloads by hand"] = 0
    async with trial.under_load():
        async for _ in trial.rounds():
            status = await trial.site.running_plugin()
            at = time.monotonic()
            (poison,) = await trial.traffic.send_now(1, SPIN)
            await trial.note_decisions(at, [poison])
            helped = await _wait_replaced(trial, status.generation)
            await trial.note_serving(helped or at)
            fates = [each for each in trial.due_between(at, time.monotonic()) if each is not poison]
            await trial.note_decisions(at, fates)
        await trial.site.running_plugin()


async def _wait_replaced(trial: Trial, generation: int) -> float:
    """Return 0 when the server replaces the generation by itself, else when we told it to."""
    with trio.move_on_after(_UNAIDED_S):
        while (await trial.site.plugin()).generation == generation:  # noqa: ASYNC110 - a process
            await trio.sleep(POLL_S)
        return 0.0
    helped = time.monotonic()
    trial.notes["reloads by hand"] = int(trial.notes["reloads by hand"]) + 1
    await trial.site.reload()
    return helped


async def crashing(trial: Trial) -> None:
    """The server starts with a version that ends while it starts; then a good one is installed.

    After that, upgrades to a version that crashes: the running one stays.
    """
    good = write_guard(trial.folder, "1.0.1")
    bad = write_guard(trial.folder, "1.0.2", crashing=True)
    at = time.monotonic()
    async with trial.traffic.running(trial.site.server):
        await trio.sleep(_CRASHING_S)
        fixed = time.monotonic()
        await trial.note_decisions(at, trial.due_between(at, fixed))
        await trial.site.install(good)
        await trial.note_serving(fixed)
        trial.processes = trial.site.look()
        refused = trial.by_policy
        for _ in range(trial.options.repeats):
            try:
                await trial.site.install(bad)
            except BenchError:
                trial.notes["crashing upgrades refused"] = (
                    int(trial.notes.get("crashing upgrades refused", 0)) + 1
                )
            else:
                trial.broken.append("a version that crashes at start became current")
            await trio.sleep(0.5)
        trial.notes["refused during crashing upgrades"] = trial.by_policy - refused
        if trial.by_policy > refused:
            trial.broken.append("messages were refused while an upgrade failed")


async def replaced(trial: Trial) -> None:
    """Reloads and upgrades in turn: nobody may notice."""
    async with trial.under_load():
        quiet_from = time.monotonic()
        await trio.sleep(_QUIET_S)
        quiet = trial.due_between(quiet_from, time.monotonic())
        began = time.monotonic()
        for number in range(trial.options.repeats * 2):
            at = time.monotonic()
            if number % 2:
                await trial.site.install(write_guard(trial.folder, f"1.1.{number}"))
            else:
                await trial.site.reload()
            await trial.note_serving(at)
            await trio.sleep(0.5)
        during = trial.due_between(began, time.monotonic() - 0.5)
        await trial.note_decisions(began, during)
        await trial.traffic.wait_answered(quiet)
    for name, fates in (("quiet", quiet), ("during", during)):
        latencies = array("d", (fate.answered_at - fate.due for fate in fates if fate.reason))
        trial.notes[f"p99 {name}, ms"] = percentiles(latencies).p99
    if trial.by_policy:
        trial.broken.append(f"{trial.by_policy} messages were refused during planned reloads")


async def server_killed(trial: Trial) -> None:
    """SIGKILL of the server, with calls in flight; its plugins must go with it.

    Then it is started again, and clients send again what was not answered.
    """
    for _ in range(trial.options.repeats):
        async with trial.under_load():
            await trio.sleep(_QUIET_S)
            os.kill((await trial.site.running_plugin()).pid, signal.SIGSTOP)
            await trial.hold_calls()
            at = time.monotonic()
            trial.site.kill()
        trial.left += await trial.site.gone()
        gone_s = time.monotonic() - at
        slowest = float(trial.notes.get("slowest end of its processes, ms", 0))
        trial.notes["slowest end of its processes, ms"] = max(slowest, round(gone_s * 1000, 1))
        await trial.site.start()
        async with trial.traffic.running(trial.site.server):
            await trial.note_serving(at)
            with trio.move_on_after(_QUIET_S):
                await trial.traffic.wait_answered(trial.due_between(0, at))
            await trial.note_decisions(at, trial.due_between(at - _QUIET_S, at))
