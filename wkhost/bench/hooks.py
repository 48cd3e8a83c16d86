"""`bench hooks`: the batched stream against one unary gRPC call per message, in the same run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import trio

from wkhost.bench.calls import CallFigures
from wkhost.bench.errors import BenchError
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Report, look_around
from wkhost.bench.samples import ratio
from wkhost.bench.server import temporary_folder
from wkhost.bench.stream import HookStream, hook_stream

_UNARY_EXTRA_S = 60.0
"""For starting two processes and for what is in flight at the end."""
_LOOK_S = 0.2


class HooksOptions(msgspec.Struct, frozen=True):
    """Each number of calls in flight is measured `duration_s`, each way."""

    inflight: tuple[int, ...] = (1, 64, 1000)
    duration_s: float = 3.0
    warmup_s: float = 0.5


class HooksResult(msgspec.Struct, frozen=True):
    """Both ways at one number of calls in flight. A ratio over 1 is in favour of the stream."""

    inflight: int
    ok: bool
    stream: CallFigures
    unary: CallFigures
    rate_ratio: float
    """Calls per second, stream to unary."""
    cpu_ratio: float
    """CPU per call of both processes, unary to stream."""


def measure_hooks(options: HooksOptions, tell: Tell) -> Report:
    """Measure calls through one empty plugin. Raises BenchError, PluginError."""
    steps = Steps(1 + 2 * len(options.inflight), tell)
    with temporary_folder() as folder:
        around = look_around(folder)
        return around.report("hooks", options, trio.run(_measure, options, folder, steps))


async def _measure(options: HooksOptions, folder: Path, steps: Steps) -> list[HooksResult]:
    steps.begin("starting a plugin")
    results = []
    async with hook_stream(folder) as stream:
        steps.end()
        for inflight in options.inflight:
            steps.begin(f"{inflight} in flight, batched stream")
            batched = await _shown(steps, options, stream, inflight)
            steps.begin(f"{inflight} in flight, unary calls")
            unary = await _unary(options, folder / "u", inflight)
            steps.end()
            results.append(_result(inflight, batched, unary))
    return results


async def _shown(
    steps: Steps, options: HooksOptions, stream: HookStream, inflight: int
) -> CallFigures:
    """Measure the stream and show how far it is."""
    length_s = options.warmup_s + options.duration_s
    start = trio.current_time()

    async def show() -> None:
        while True:
            await trio.sleep(_LOOK_S)
            steps.at((trio.current_time() - start) / length_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        figures = await stream.measure(inflight, options.warmup_s, options.duration_s)
        nursery.cancel_scope.cancel()
    steps.end()
    return figures


async def _unary(options: HooksOptions, path: Path, inflight: int) -> CallFigures:
    command = [sys.executable, "-m", "wkhost.bench.unary", "client", str(path), str(inflight)]
    command += [str(options.warmup_s), str(options.duration_s)]
    limit_s = options.warmup_s + options.duration_s + _UNARY_EXTRA_S
    with trio.move_on_after(limit_s):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout, type=CallFigures)
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise BenchError(f"unary calls: {last or f'exit code {done.returncode}'}")
    raise BenchError(f"unary calls: not done within {limit_s:.0f} s")


def _result(inflight: int, stream: CallFigures, unary: CallFigures) -> HooksResult:
    return HooksResult(
        inflight=inflight,
        ok=stream.calls > 0 and unary.calls > 0,
        stream=stream,
        unary=unary,
        rate_ratio=ratio(stream.calls_per_s, unary.calls_per_s),
        cpu_ratio=ratio(
            unary.cpu_us_caller + unary.cpu_us_plugin, stream.cpu_us_caller + stream.cpu_us_plugin
        ),
    )
