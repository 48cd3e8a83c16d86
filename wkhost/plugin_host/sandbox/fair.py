"""CPU fairness between plugins: one that its quota stops again and again gives way to all others.

Theory of operation. A quota bounds what a group takes in a second, not when: a plugin with several
busy threads has every core for its part of each period, and whoever wakes meanwhile waits for a
slice of the scheduler. A plugin of one busy thread never meets a quota of one core, however loaded
it is. So being stopped in most periods tells a hog from a plugin that works hard; its group is made
idle: it runs when nobody else wants to, and stops at once when somebody does.
"""

from __future__ import annotations

import contextlib

import structlog

from wkhost.plugin_host.sandbox.cgroups import Group

LOOK_EVERY_S = 0.25
STOPPED_SHARE = 0.5
"""Of the periods since the last look; from this on the group gives way."""
FORGIVEN_LOOKS = 20
"""Looks in a row without such a stop, until it is as good as the others again."""


log = structlog.get_logger(__name__)


class FairShare:
    """Of one group with a CPU quota. `idle` tells whether it gives way now."""

    def __init__(self, group: Group) -> None:
        self.idle = False
        self._group = group
        self._before = (0, 0)
        self._good_looks = 0

    def look(self) -> None:
        """See how often it was stopped, and act."""
        periods, stopped = counts = self._group.stopped_periods()
        periods -= self._before[0]
        stopped -= self._before[1]
        self._before = counts
        if periods > 0 and stopped >= periods * STOPPED_SHARE:
            self._good_looks = 0
            if not self.idle:
                self._become(idle=True)
        elif self.idle:
            self._good_looks += 1
            if self._good_looks >= FORGIVEN_LOOKS:
                self._become(idle=False)

    def _become(self, *, idle: bool) -> None:
        # Older kernels have no such file; there the quota is all there is.
        with contextlib.suppress(OSError):
            self._group.set_idle(idle=idle)
            self.idle = idle
            log.warning("plugin_gives_way", group=self._group.name, idle=idle)
