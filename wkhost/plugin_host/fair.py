"""CPU fairness: a plugin that works on its own account gives way when the machine is short of CPU.

Theory of operation. What a plugin does while a message waits for it is the server's own work. What
it does besides, observers' work included, is its own account. On a machine with cores to spare
nobody minds. Where less than `HEADROOM` is free, whoever wakes waits for a core, and every user
notices; then a plugin with much on its own account gets what is left without the headroom, at least
`LEAST_SHARE`, until it wants less or there is room again. So does one that its quota stops again
and again, with more busy threads than it may have, or that takes more than it may where no quota
is. A quota alone would not do: it bounds what is taken in a second, not when.

Other processes start politely the same way where the old one serves meanwhile, for a while.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import psutil
import structlog
import trio

LOOK_EVERY_S = 0.1
HEADROOM = 1.0
"""Cores, or half of the machine's. A scheduler that sees its cores busy looks for no idle one."""
LEAST_SHARE = 0.02
LEAST_START_SHARE = 0.15
OWN_SHARE = 0.25
"""Cores on its own account; less is never minded."""
STOPPED_SHARE = 0.5
"""Of the periods of its quota since the last look."""
BEYOND_LIMIT = 1.1
"""Times its limit; more than the kernel lets pass where there is a quota."""
GREEDY_LOOKS = 3
LEFT_LOOKS = 10
"""What is left to it is the mean of so many looks. It may be stopped in one and run in the next,
and the machine's idle time is not read at the same moment."""
CONTENT = 0.8
"""A plugin that takes less of what it may have wants no more."""
FORGIVEN_LOOKS = 50
"""Looks in a row at which it was content, until it is as good as the others again."""
START_S = 5.0
"""So long it may take to start: nothing counts against it, and a polite one is held back."""

log = structlog.get_logger(__name__)


class Brake(Protocol):
    """Slows one plugin's processes."""

    def used_s(self) -> float:
        """Return the CPU time they have used, in seconds."""

    def stopped_periods(self) -> tuple[int, int]:
        """Return how many periods of its quota there were, and in how many it was stopped."""

    def slow(self, share: float) -> None:
        """Let them have so many cores, and those only when nobody else wants them.

        Called at every look, since there may be other processes by then.
        """

    def release(self) -> None:
        """Let them run as anybody again."""


class Machine:
    """How many cores are idle, read at most every `LOOK_EVERY_S` for all who ask."""

    def __init__(
        self,
        cpu_times: Callable[[], Sequence[float]] = psutil.cpu_times,
        cores: int = os.cpu_count() or 1,
    ) -> None:
        """`cpu_times` returns seconds of all cores together, in the order of /proc/stat."""
        self.cores = cores
        self.headroom = min(HEADROOM, cores / 2)
        self.free = float(cores)
        self.idle_s = 0.0
        """Of all cores together, since some time."""
        self._cpu_times = cpu_times
        self._read_at = -LOOK_EVERY_S
        self._total_s = 0.0

    def look(self, now: float) -> float:
        """Return the idle cores since about the last look. `now` in seconds."""
        if now - self._read_at >= LOOK_EVERY_S * 0.9:
            self._read_at = now
            # user nice system idle iowait irq softirq steal; guests are counted in user
            times = self._cpu_times()[:8]
            idle_before, total_before = self.idle_s, self._total_s
            self.idle_s, self._total_s = times[3] + times[4], sum(times)
            if self._total_s > total_before:
                idle_share = (self.idle_s - idle_before) / (self._total_s - total_before)
                self.free = self.cores * idle_share
        return self.free


class FairShare:
    """Of one process. `share` is what it is held to, in cores, None while it is free."""

    def __init__(
        self,
        brake: Brake,
        machine: Machine,
        *,
        name: str,
        limit: float,
        waited_for_s: Callable[[], float],
        polite: bool,
    ) -> None:
        """`limit`: cores by its quota. `waited_for_s` tells for how long, in all, messages have
        waited for its answers."""
        self.share: float | None = None
        self._brake = brake
        self._machine = machine
        self._name = name
        self._limit = limit
        self._waited_for_s = waited_for_s
        self._polite = polite
        self._starting = True
        self._started_at = 0.0
        self._at = 0.0
        self._spare: deque[tuple[float, float]] = deque(maxlen=LEFT_LOOKS + 1)
        """Looks: when, and the core seconds until then that nobody else used."""
        self._used_s = 0.0
        self._answered_s = 0.0
        self._periods = (0, 0)
        self._bad_looks = 0
        self._good_looks = 0

    async def keep(self) -> None:
        """Look again and again until cancelled; it is free then."""
        self._started_at = self._at = trio.current_time()
        try:
            while True:
                self.look(trio.current_time())
                await trio.sleep(LOOK_EVERY_S)
        finally:
            self._free()

    def serves(self) -> None:
        """It has started, or somebody waits for it to: from now on it is one like the others."""
        if self._starting:
            self._starting = False
            self._free()
            # The next look still sees what the start took.
            self._bad_looks = -1

    def look(self, now: float) -> None:
        """See what it used since the last look, and act. `now` in seconds."""
        free = self._machine.look(now)
        elapsed = max(now - self._at, LOOK_EVERY_S / 2)
        used_s, answered_s = self._brake.used_s(), self._waited_for_s()
        used = (used_s - self._used_s) / elapsed
        own = used - (answered_s - self._answered_s) / elapsed
        self._at, self._used_s, self._answered_s = now, used_s, answered_s
        self._spare.append((now, self._machine.idle_s + used_s))
        often_stopped = self._often_stopped()
        if self._starting:
            self._starting = now - self._started_at < START_S
            if self._starting and self._polite:
                self._slow(max(LEAST_START_SHARE, self._left()))
            elif not self._starting:
                self._free()
            return
        if self.share is None:
            short = free < self._machine.headroom
            beyond = often_stopped or used > self._limit * BEYOND_LIMIT
            greedy = beyond or (short and own >= OWN_SHARE)
            self._bad_looks = self._bad_looks + 1 if greedy else 0
            if self._bad_looks < GREEDY_LOOKS:
                return
            log.warning("plugin_gives_way", plugin=self._name, cores=round(used, 2))
        elif used < self.share * CONTENT and not often_stopped:
            self._good_looks += 1
            if self._good_looks >= FORGIVEN_LOOKS:
                self._free()
                log.info("plugin_is_free_again", plugin=self._name)
                return
        else:
            self._good_looks = 0
        self._slow(max(LEAST_SHARE, self._left()))

    def _left(self) -> float:
        (since, before_s), (now, after_s) = self._spare[0], self._spare[-1]
        spare = (after_s - before_s) / max(now - since, LOOK_EVERY_S)
        return min(self._limit, spare - self._machine.headroom)

    def _often_stopped(self) -> bool:
        periods, stopped = counts = self._brake.stopped_periods()
        before, stopped_before = self._periods
        self._periods = counts
        return stopped - stopped_before >= max(1.0, (periods - before) * STOPPED_SHARE)

    def _slow(self, share: float) -> None:
        self.share = share
        self._brake.slow(share)

    def _free(self) -> None:
        self._bad_looks = self._good_looks = 0
        if self.share is not None:
            self.share = None
            self._brake.release()
