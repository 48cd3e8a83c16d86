"""Hook calls over the batched stream: a real plugin process and plugin host, and nothing else.

The kernel's part is played by `Caller`: like the dispatcher it is handed verdicts in batches and
issues the next calls while it is at it.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import process_time

import trio

from wkhost import __version__
from wkhost.bench.calls import CallFigures, send_call
from wkhost.bench.errors import BenchError
from wkhost.bench.plugins import write_empty_plugin
from wkhost.bench.samples import percentiles, ratio
from wkhost.bench.usage import cpu_s
from wkhost.hooks.chain import EMPTY_CHAIN, Chain
from wkhost.hooks.records import CallRecord, HookLines
from wkhost.hooks.target import Answer, Target
from wkhost.hooks.verdict import Continue
from wkhost.link.contract import InspectPlugin, InstallPlugin, SendMessage, Sent
from wkhost.plugin_host.host import PluginHost
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.store.store import open_store
from wkhost.types import Message

MAX_PAYLOAD_BYTES = 64 * 1024
NO = "empty"
_STOP_S = 8.0
_DRAIN_S = 10.0


class Caller:
    """Implements `hooks.target.Answers`; keeps a number of `send` calls in flight."""

    def __init__(self) -> None:
        self.record: CallRecord | None = None
        """Where the host counts the plugin's calls; the dispatcher's part is to say how long they
        took, by which the host knows that the plugin is waited for."""
        self.chain: Chain = EMPTY_CHAIN
        self._answered_at = 0.0
        self._open: dict[int, float] = {}
        self._last_id = 0
        self._sending = False
        self._begin = self._end = float("inf")
        self._count = 0
        self._latencies = array("d")
        self._failure = ""
        self._idle = trio.Event()

    def chain_changed(self, chain: Chain) -> None:
        self.chain = chain

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        now = trio.current_time()
        if self.record is not None:
            self.record.total_s += now - self._answered_at
        self._answered_at = now
        take = self._open.pop
        measured = self._begin <= now < self._end
        for call_id, answer in answers:
            start = take(call_id, None)
            if start is None or type(answer) is not Continue:
                self._failure = f"call {call_id} was answered by {answer!r}"
                continue
            if measured:
                self._latencies.append(now - start)
        if measured:
            self._count += len(answers)
        if self._sending:
            self._issue(len(answers), now)
        elif not self._open:
            self._idle.set()

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        """Who answers makes no difference here."""

    def _issue(self, count: int, now: float) -> None:
        submit = self._target().submit_send
        opened = self._open
        first = self._last_id + 1
        self._last_id += count
        for call_id in range(first, first + count):
            opened[call_id] = now
            if not submit(send_call(call_id, now)):
                raise BenchError("the plugin host did not take a call")

    def _target(self) -> Target:
        return self.chain.send[0].target

    async def measure(
        self, inflight: int, warmup_s: float, duration_s: float, pid: int
    ) -> CallFigures:
        """Keep `inflight` calls in flight; `pid` is the plugin. Raises BenchError."""
        self._count = 0
        self._latencies = array("d")
        self._begin = self._end = float("inf")
        self._sending = True
        self._answered_at = trio.current_time()
        self._issue(inflight, trio.current_time())
        await trio.sleep(warmup_s)
        own, theirs = process_time(), cpu_s(pid)
        self._begin = trio.current_time()
        self._end = self._begin + duration_s
        await trio.sleep(duration_s)
        seconds = min(trio.current_time() - self._begin, duration_s)
        own, theirs = process_time() - own, cpu_s(pid) - theirs
        await self._drain()
        return CallFigures(
            calls=self._count,
            calls_per_s=ratio(self._count, seconds, 1),
            call_ms=percentiles(self._latencies),
            cpu_us_caller=ratio(own * 1e6, self._count),
            cpu_us_plugin=ratio(theirs * 1e6, self._count),
            mean_batch=0.0,
        )

    async def _drain(self) -> None:
        self._sending = False
        self._idle = trio.Event()
        if self._open:
            with trio.move_on_after(_DRAIN_S):
                await self._idle.wait()
        if self._open:
            self._failure = f"{len(self._open)} calls were never answered"
        if self._failure:
            raise BenchError(f"hook calls: {self._failure}")


class HookStream:
    """A running plugin host with one empty plugin."""

    def __init__(self, host: PluginHost, caller: Caller) -> None:
        self._host = host
        self._caller = caller

    async def measure(self, inflight: int, warmup_s: float, duration_s: float) -> CallFigures:
        """Raises BenchError."""
        before = self._host.statistics()[NO]
        pid = self._host.info(NO).pid
        figures = await self._caller.measure(inflight, warmup_s, duration_s, pid)
        after = self._host.statistics()[NO]
        batches = after["batches"] - before["batches"]
        mean_batch = ratio(after["calls"] - before["calls"], batches)
        return CallFigures(
            calls=figures.calls,
            calls_per_s=figures.calls_per_s,
            call_ms=figures.call_ms,
            cpu_us_caller=figures.cpu_us_caller,
            cpu_us_plugin=figures.cpu_us_plugin,
            mean_batch=mean_batch,
        )


class _NoServices:
    """The host API's way into a kernel, for a plugin that never takes it."""

    async def send_message(self, request: SendMessage, door: str, hop: int) -> Sent:
        raise BenchError("there is no kernel here")

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        return ()

    async def recipients(self, message: Message) -> list[str]:
        return []

    async def offline_recipients(self, message: Message) -> list[str]:
        return []


@asynccontextmanager
async def hook_stream(folder: Path) -> AsyncIterator[HookStream]:
    """Run a plugin host below `folder` with one empty plugin; all is stopped at the end."""
    store = await open_store(None)
    caller = Caller()
    host = PluginHost(
        plugins_dir=folder / "plugins",
        runtime_dir=folder / "r",
        store=store,
        answers=caller,
        services=_NoServices(),
        chain_changed=caller.chain_changed,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        host_version=__version__,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        try:
            source = write_empty_plugin(folder / "sources", NO)
            proposal = await host.versions.inspect(InspectPlugin(str(source)))
            await host.versions.install(InstallPlugin(str(source), digest=proposal.digest))
            caller.record = caller.chain.send[0].target.lines["send"].record
            yield HookStream(host, caller)
        finally:
            with trio.move_on_after(_STOP_S, shield=True):
                await host.stop()
            nursery.cancel_scope.cancel()
    await store.close()
