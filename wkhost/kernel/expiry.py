"""Removes rows that have expired: cached look-ups and plugins' values with a time to live."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from wkhost.errors import StoreError
from wkhost.store import keys
from wkhost.store.store import Store

INTERVAL_S = 60.0
"""Between two rounds. Expired rows are invisible at once; a round only frees their space."""

log = structlog.get_logger(__name__)


class Expiry:
    """The task that goes through the families whose rows may expire."""

    def __init__(self, store: Store, wall_ms: Callable[[], int]) -> None:
        self._store = store
        self._wall_ms = wall_ms
        self.removed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await trio.sleep(INTERVAL_S)
            for family in (keys.CACHE, keys.PLUGIN):
                try:
                    await self._purge(family)
                except StoreError as error:
                    log.warning("expired_rows_kept", family=family, error=str(error))

    async def _purge(self, family: str) -> None:
        start = b""
        while True:
            rows, next_start = self._store.expired_rows(family, self._wall_ms(), start)
            if rows:
                # Not synced: a row that comes back after a crash is still expired.
                self._store.write(rows)
                self.removed += len(rows)
            if next_start is None:
                return
            start = next_start
            await trio.lowlevel.checkpoint()
