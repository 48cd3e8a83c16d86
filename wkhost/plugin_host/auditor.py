"""Feeds the audit log of a running server: changes at once, denials summed up.

A plugin that is denied the same thing ten thousand times makes one record per interval, with the
count. The first denial of an interval opens it; the record follows at its end.
"""

from __future__ import annotations

import math
import os
from collections import deque
from typing import Any

import structlog
import trio

from wkhost.errors import PluginError
from wkhost.link.contract import Actor
from wkhost.plugin_host.audit import AuditLog, Event

INTERVAL_S = 10.0
MAX_KINDS = 64
"""Different denials of one plugin that are told apart within an interval."""
MAX_QUEUED = 1000
OTHER = "(others)"

log = structlog.get_logger(__name__)


def server_actor() -> Actor:
    """The actor of what the server does by itself."""
    return Actor("server", os.geteuid(), os.getpid())


class Auditor:
    """All methods on the trio thread. Nothing that is recorded can stop the server.

    Where the log cannot be written, `record` raises OSError to whoever asked for the change; the
    background records are told in the server's log and counted.
    """

    def __init__(self, audit: AuditLog, *, interval_s: float = INTERVAL_S) -> None:
        self.log = audit
        self._interval_s = interval_s
        self._queue: deque[Event] = deque()
        self._denied: dict[str, dict[tuple[str, str], int]] = {}
        self._wake = trio.Event()
        self._writing = trio.Lock()
        self.lost = 0
        """Records that could not be written or had no room."""

    async def record(self, event: Event) -> None:
        """Record a change; durable when this returns. Raises OSError, PluginError."""
        async with self._writing:
            await trio.to_thread.run_sync(self.log.append, [event])

    def note(self, action: str, plugin: str = "", **details: Any) -> None:
        """Record something that the server did or found, soon."""
        if len(self._queue) >= MAX_QUEUED:
            self.lost += 1
            return
        self._queue.append(Event(server_actor(), action, plugin, details))
        self._wake.set()

    def deny(self, plugin: str, action: str, what: str) -> None:
        """Count a denial. `action` is of the host's set, `what` may hold text of the plugin."""
        kinds = self._denied.setdefault(plugin, {})
        key = (action, what[:200])
        if key not in kinds and len(kinds) >= MAX_KINDS:
            key = (action, OTHER)
        kinds[key] = kinds.get(key, 0) + 1
        self._wake.set()

    def link_refused(self, actor: Actor, reason: str) -> None:
        """Count a peer that the link did not admit."""
        what = f"role {actor.role[:40]!a}, uid {actor.uid}, process {actor.pid}: {reason}"
        self.deny("", "link_refused", what)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what was noted until cancelled, and the rest then."""
        task_status.started()
        due = math.inf
        try:
            while True:
                with trio.move_on_at(due):
                    await self._wake.wait()
                self._wake = trio.Event()
                now = trio.current_time()
                if now >= due:
                    self._sum_up()
                due = min(due, now + self._interval_s) if self._denied else math.inf
                await self._flush()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                self._sum_up()
                await self._flush()

    def _sum_up(self) -> None:
        denied, self._denied = self._denied, {}
        actor = server_actor()
        for plugin, kinds in denied.items():
            for (action, what), count in kinds.items():
                details = {"what": what, "count": count, "interval_s": self._interval_s}
                self._queue.append(Event(actor, action, plugin, details))

    async def _flush(self) -> None:
        if not self._queue:
            return
        async with self._writing:
            events = list(self._queue)
            # Cancellation comes before the thread starts or not at all, so nothing is lost by it.
            try:
                await trio.to_thread.run_sync(self.log.append, events)
            except (OSError, PluginError) as error:
                self.lost += len(events)
                log.error("audit_not_written", records=len(events), reason=str(error))
            for _ in events:
                self._queue.popleft()
