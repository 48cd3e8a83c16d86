"""Durable observers: each stored message to each plugin that observes, in order, never missed.

Theory of operation. One task per observing hook (`persist_after`, `receive`) of a plugin reads the
store's log after its cursor, hands a batch over, and moves the cursor when the plugin has answered;
one batch is out at a time, so a new generation starts where the old one ended. The cursor is
written without a sync of its own: after a crash it may lag, and messages come again. A batch that
fails five times is halved, and a single message that fails five times is recorded and skipped. A
plugin that is not running fails nothing: the observer waits.

Where the operator bounds the lag, what lies beyond is dropped between two tries, oldest first: the
cursor moves on, and a record says how many. A plugin that is always too slow drops with every
batch, so the records sum up what was dropped in an interval.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
import trio

from wkhost.errors import PluginError, StoreError
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.store import mutations
from wkhost.store.store import Store
from wkhost.types import Message

BATCH_MESSAGES = 64
BATCH_BYTES = 256 * 1024
BATCH_EVERY_S = 0.01
"""Least time from batch to batch, unless a full one waits. A lone message goes at once; under load
a batch per commit would cost the users of the server more than their own messages do.
"""
TRIES = 5
TRIES_OF_PART = 2
"""Tries of a part of a batch that has failed already."""
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 2.0
DROPS_TOLD_EVERY_S = 10.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


OBSERVING_HOOKS = ("persist_after", "receive")


def cursor_name(no: str, hook: str) -> str:
    return f"plugin/{no}/{hook}"


class Observer:
    """Drives one observing hook of a plugin. `run` it in a nursery and cancel it to stop."""

    def __init__(
        self,
        proxy: PluginProxy,
        store: Store,
        hook: str,
        hand_over: Callable[[Sequence[Message]], Awaitable[None]],
        *,
        matches: Callable[[Message], bool] | None,
        from_beginning: bool,
        tell: Callable[[str], None],
        max_lag: int = 0,
        dropped: Callable[[int], None] = lambda count: None,
        skipped: Callable[[int], None] = lambda message_id: None,
    ) -> None:
        """`hand_over` gives messages to the plugin and returns when it is done with all of them;
        it raises PluginError when they must come again. `tell` writes a line of the host into the
        plugin's log. A plugin that lags by more than `max_lag` messages (0: no bound) loses the
        oldest of them; `dropped` is told how many. `skipped` is told of a message that it is not
        given any more.
        """
        self.no = proxy.no
        self.hook = hook
        self._cursor_name = cursor_name(proxy.no, hook)
        self._hand_over = hand_over
        self.position = 0
        """log_pos up to which the plugin has seen everything that concerns it."""
        self.skipped = 0
        self.dropped = 0
        self._proxy = proxy
        self._store = store
        self._matches = matches
        self._from_beginning = from_beginning
        self._tell = tell
        self._max_lag = max_lag
        self._dropped = dropped
        self._skipped = skipped
        self._untold = 0
        """Dropped messages that no record tells of yet."""
        self._tell_drops_at = -math.inf
        self._next_batch_at = -math.inf
        self._grew = trio.Event()
        self._ending = False
        self.finished = trio.Event()
        """Set when it has ended after `end_soon`."""

    @property
    def lag(self) -> int:
        """Messages in the log that it has not passed yet."""
        return self._store.durable_log_pos - self.position

    def concerns(self, message: Message) -> bool:
        return self._matches is None or self._matches(message)

    def log_grew(self) -> None:
        self._grew.set()

    def end_soon(self) -> None:
        """Let `run` return once the plugin has answered for what it was given."""
        self._ending = True
        self._grew.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Observe for ever. `started` when the place to begin is fixed."""
        await self._with_store(self._find_start)
        task_status.started()
        try:
            while not self._ending:
                self._grew = trio.Event()
                await self._with_store(self._drop_beyond_bound)
                await self._observe_some()
        finally:
            self._tell_drops()
        self.finished.set()

    async def _observe_some(self) -> None:
        """Give the plugin what comes next, or wait for the log to grow."""
        if self.lag < BATCH_MESSAGES:
            await trio.sleep_until(self._next_batch_at)
        messages = await self._with_store(
            lambda: self._store.read_log(self.position, BATCH_MESSAGES)
        )
        if not messages:
            with trio.move_on_at(self._tell_drops_at if self._untold else math.inf):
                await self._grew.wait()
            return
        self._next_batch_at = trio.current_time() + BATCH_EVERY_S
        for batch in _split_by_bytes(messages):
            if self._ending or not await self._pass(batch):
                return

    def _drop_beyond_bound(self) -> None:
        """The operator's bound, not the plugin's pace, says how long messages wait for it."""
        if self._is_beyond_bound():
            too_many = self.lag - self._max_lag
            position = self.position + too_many
            self._store.write(mutations.put_cursor(self._cursor_name, position))
            self.position = position
            self.dropped += too_many
            self._untold += too_many
        if trio.current_time() >= self._tell_drops_at:
            self._tell_drops()

    def _is_beyond_bound(self) -> bool:
        return self._max_lag > 0 and self.lag > self._max_lag

    def _tell_drops(self) -> None:
        count, self._untold = self._untold, 0
        if not count:
            return
        self._tell_drops_at = trio.current_time() + DROPS_TOLD_EVERY_S
        text = f"{self.hook}: {count} messages of the log were dropped, it lagged by more than "
        self._tell(f"{text}{self._max_lag}")
        self._dropped(count)

    def _find_start(self) -> None:
        position = self._store.cursor(self._cursor_name)
        if position is None:
            position = 0 if self._from_beginning else self._store.durable_log_pos
            self._store.write(mutations.put_cursor(self._cursor_name, position))
        self.position = position

    async def _pass(self, batch: Sequence[Message]) -> bool:
        """Give the plugin what concerns it of `batch`, and move on. False: see `_deliver`."""
        matches = self._matches
        wanted = batch if matches is None else [m for m in batch if matches(m)]
        if wanted and not await self._deliver(wanted, TRIES):
            return False
        position = batch[-1].log_pos
        await self._with_store(
            lambda: self._store.write(mutations.put_cursor(self._cursor_name, position))
        )
        self.position = position
        return True

    async def _deliver(self, messages: Sequence[Message], tries: int) -> bool:
        """Return when the plugin has seen all of `messages`, or they are given up one by one.

        False: meanwhile it lags beyond the bound, and these may be among what is to be dropped.
        """
        pause = FIRST_PAUSE_S
        for attempt in range(1, tries + 1):
            await self._proxy.wait_ready()
            if self._is_beyond_bound():
                return False
            try:
                await self._hand_over(messages)
            except PluginError as error:
                log.warning(
                    "plugin_observer_failed",
                    plugin=self.no,
                    hook=self.hook,
                    attempt=attempt,
                    messages=len(messages),
                    reason=str(error),
                )
            else:
                return True
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)
        if len(messages) == 1:
            self._skip(messages[0])
            return True
        middle = len(messages) // 2
        for part in (messages[:middle], messages[middle:]):
            if not await self._deliver(part, TRIES if len(part) == 1 else TRIES_OF_PART):
                return False
        return True

    def _skip(self, message: Message) -> None:
        self.skipped += 1
        log.error(
            "plugin_observer_skipped",
            plugin=self.no,
            hook=self.hook,
            log_pos=message.log_pos,
            message_id=message.message_id,
        )
        self._skipped(message.message_id)
        self._tell(
            f"{self.hook} failed {TRIES} times for message {message.message_id} "
            f"(log_pos {message.log_pos}): skipped"
        )

    async def _with_store(self, action: Callable[[], T]) -> T:
        """Do `action`; while the store is stalled or reopening, try again."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                return action()
            except StoreError as error:
                log.warning("plugin_observer_waits", plugin=self.no, reason=str(error))
            await trio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)


def _split_by_bytes(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Cut into runs of at most `BATCH_BYTES` of payload, or one message where it is larger."""
    batches: list[Sequence[Message]] = []
    first = size = 0
    for index, message in enumerate(messages):
        size += len(message.payload)
        if size > BATCH_BYTES and index > first:
            batches.append(messages[first:index])
            first, size = index, len(message.payload)
    batches.append(messages[first:])
    return batches
