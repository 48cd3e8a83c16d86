"""All faults in turn, each on a server of its own, and what they came to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from wkhost.bench.errors import BenchError
from wkhost.bench.faults import cases, impostor
from wkhost.bench.faults.guard import write_guard
from wkhost.bench.faults.site import Site
from wkhost.bench.faults.traffic import Traffic
from wkhost.bench.faults.trial import FaultOptions, Trial
from wkhost.bench.faults.truth import Truth, find_truth
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Report, look_around
from wkhost.bench.samples import Percentiles, percentiles
from wkhost.bench.server import temporary_folder

_TIMEOUT_S = 900.0
"""Of one fault; far above what any takes."""


class Fault(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    title: str
    case: Callable[[Trial], Awaitable[None]]
    http_share: float = 0.1
    crashing: bool = False
    """Whether the server starts with a guard that crashes."""


FAULTS = (
    Fault("killed", "plugin killed (-9)", cases.killed),
    Fault("stopped", "plugin hung (SIGSTOP)", cases.stopped),
    Fault("spinning", "plugin hung (endless loop)", cases.spinning),
    Fault("crashing", "plugin crashes at start", cases.crashing, crashing=True),
    Fault("replaced", "reload and upgrade under load", cases.replaced),
    Fault("impostor", "impostor, spent token", impostor.impostor),
    Fault("http", "HTTP door, plugin killed", cases.killed, http_share=0.6),
    Fault("server", "server killed (-9)", cases.server_killed),
)
NAMES = tuple(fault.name for fault in FAULTS)


class FaultResult(msgspec.Struct, frozen=True):
    """One fault. `broken` names every promise that was not kept; `ok` when there is none."""

    name: str
    title: str
    ok: bool
    broken: list[str]
    truth: Truth
    decision_ms: Percentiles
    """From the fault to the answer, of messages on their way; see docs/faults.md for each row."""
    serving_ms: Percentiles
    """From the fault (or its end) to the first message that was moderated and accepted again."""
    refused_by_policy: int
    """Messages refused because the guard could not judge them, over all repeats."""
    processes_left: int
    zombies_left: int
    notes: dict[str, float | int | str]


def measure_faults(options: FaultOptions, tell: Tell) -> Report:
    """Try the faults. Raises BenchError when one cannot be tried at all."""
    unknown = set(options.only) - set(NAMES)
    if unknown:
        raise BenchError(
            f"--only: expected one of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}"
        )
    chosen = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    steps = Steps(len(chosen), tell)
    results = []
    with temporary_folder() as folder:
        around = look_around(folder)
        for fault in chosen:
            steps.begin(fault.title)
            results.append(_tried(options, fault, folder / fault.name))
            steps.end()
        return around.report("faults", options, results)


def _tried(options: FaultOptions, fault: Fault, folder: Path) -> FaultResult:
    try:
        return trio.run(_try, options, fault, folder)
    except BaseExceptionGroup as group:
        found = group.subgroup(BenchError)
        if found is None:
            raise
        raise BenchError(f"{fault.title}: {_leaf(found)}") from group


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _try(options: FaultOptions, fault: Fault, folder: Path) -> FaultResult:
    guard = write_guard(folder, "1.0.0", crashing=fault.crashing)
    # Repeats on purpose are not what quarantine is for.
    site = Site(folder / "s", [guard], {"plugin.crashes": 10 + options.repeats})
    trial = Trial(options, folder, site, Traffic(options.rate, fault.http_share))
    await site.start()
    try:
        with trio.fail_after(_TIMEOUT_S):
            await fault.case(trial)
            trial.left += await site.settled(trial.processes)
            zombies = site.zombies()
            truth = await find_truth(trial.traffic, site.server)
    finally:
        await site.stop()
    trial.left += await site.gone()
    if trial.left:
        trial.broken.append(f"{trial.left} processes were left")
    if zombies:
        trial.broken.append(f"{zombies} zombies were left")
    broken = truth.broken + trial.broken
    return FaultResult(
        name=fault.name,
        title=fault.title,
        ok=not broken,
        broken=broken,
        truth=truth,
        decision_ms=percentiles(trial.decision_s),
        serving_ms=percentiles(trial.serving_s),
        refused_by_policy=trial.by_policy,
        processes_left=trial.left,
        zombies_left=zombies,
        notes=trial.notes,
    )
