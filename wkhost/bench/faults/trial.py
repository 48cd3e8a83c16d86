"""One fault being tried: what it works on and what it writes down."""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from wkhost.bench.faults.guard import CODE
from wkhost.bench.faults.site import Site
from wkhost.bench.faults.traffic import Fate, Traffic

SERVING_WITHIN_S = 30.0
_HELD = 8


class FaultOptions(msgspec.Struct, frozen=True):
    """`rate` messages a second; each fault comes `repeats` times, `rest_s` apart.

    A plugin that lived ten seconds is restarted at once; one that dies sooner, after a pause. So
    the default rest measures a plugin that was healthy.
    """

    rate: float = 200.0
    repeats: int = 5
    rest_s: float = 10.5
    hang_s: float = 4.0
    only: tuple[str, ...] = ()


class Trial:
    """Server, traffic and findings of one fault. `folder` is for what the fault needs."""

    def __init__(self, options: FaultOptions, folder: Path, site: Site, traffic: Traffic) -> None:
        self.options = options
        self.folder = folder
        self.site = site
        self.traffic = traffic
        self.decision_s = array("d")
        """From the fault to the answer, of messages that were on their way."""
        self.serving_s = array("d")
        """From the fault to the answer of the first message that was moderated again."""
        self.broken: list[str] = []
        """Promises, in words, that were found broken."""
        self.notes: dict[str, float | int | str] = {}
        self.processes = 0
        self.left = 0

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """The traffic runs for the time of the block."""
        async with self.traffic.running(self.site.server):
            await self.traffic.wait_accepted(time.monotonic())
            self.processes = max(self.processes, self.site.look())
            yield

    async def rounds(self) -> AsyncIterator[int]:
        """Count the repeats, with the rest before each."""
        for number in range(self.options.repeats):
            await trio.sleep(self.options.rest_s)
            yield number

    async def hold_calls(self) -> None:
        """Wait until the stopped plugin has calls that it does not answer."""
        await self.traffic.send_now(_HELD)
        await self.site.outstanding(_HELD)

    async def note_serving(self, since: float) -> bool:
        """Write down how long it took until a message was moderated again; False: too long."""
        with trio.move_on_after(SERVING_WITHIN_S):
            self.serving_s.append(await self.traffic.wait_accepted(since) - since)
            return True
        self.broken.append(f"not serving again within {SERVING_WITHIN_S:.0f} s")
        return False

    async def note_decisions(self, since: float, fates: list[Fate]) -> None:
        with trio.move_on_after(SERVING_WITHIN_S):
            await self.traffic.wait_answered(fates)
        self.decision_s.extend(
            fate.answered_at - max(since, fate.due) for fate in fates if fate.answered_at >= since
        )

    def due_between(self, since: float, until: float) -> list[Fate]:
        return [fate for fate in self.traffic.fates if since <= fate.due < until]

    @property
    def by_policy(self) -> int:
        """Messages refused so far by the host's policy and not by the guard's judgement."""
        return sum(fate.reason > 1 and fate.reason != CODE for fate in self.traffic.fates)
