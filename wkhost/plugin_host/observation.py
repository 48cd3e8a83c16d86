"""Which observers run: one per observing hook of each active plugin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from wkhost.link.contract import PluginObservation
from wkhost.plugin_host.manifest import HookSpec, Manifest
from wkhost.plugin_host.observers import OBSERVING_HOOKS, Observer
from wkhost.plugin_host.output import HOST_STREAM
from wkhost.plugin_host.predicates import compile_predicate
from wkhost.plugin_host.receivers import Receivers, Recipients
from wkhost.plugin_host.supervisor import Supervisor
from wkhost.store.store import Store
from wkhost.types import Message


class Observation:
    """Starts and stops observers, and tells them that the log grew."""

    def __init__(
        self,
        store: Store,
        recipients: Recipients,
        *,
        max_lag: int = 0,
        dropped: Callable[[str, str, int], None] = lambda no, hook, count: None,
        skipped: Callable[[str, str, int], None] = lambda no, hook, message_id: None,
    ) -> None:
        """`dropped(no, hook, count)` is told of messages that a plugin lagged too far behind,
        `skipped(no, hook, message_id)` of one that it failed over and over."""
        self._store = store
        self._recipients = recipients
        self._max_lag = max_lag
        self._dropped = dropped
        self._skipped = skipped
        self._of: dict[str, tuple[trio.CancelScope, list[Observer]]] = {}
        self._all: tuple[Observer, ...] = ()

    def log_grew(self) -> None:
        """The store's log has new durable messages."""
        for observer in self._all:
            observer.log_grew()

    async def start(
        self, nursery: trio.Nursery, supervisor: Supervisor, manifest: Manifest
    ) -> None:
        """Give a plugin the observers that its manifest asks for, instead of those it had."""
        self.stop(supervisor.no)
        wanted = [
            self._observer(supervisor, hook, spec)
            for hook in OBSERVING_HOOKS
            if (spec := manifest.hooks.get(hook)) is not None
        ]
        if not wanted:
            return
        scope = trio.CancelScope()
        self._of[supervisor.no] = (scope, wanted)
        for observer in wanted:
            await nursery.start(_run_in, scope, observer)
        self._note_all()

    def stop(self, no: str) -> None:
        """Stop the observers of a plugin; their cursors stay."""
        running = self._of.pop(no, None)
        if running is not None:
            running[0].cancel()
            self._note_all()

    async def settle(self, no: str, within_s: float) -> dict[str, int]:
        """End the observers of a plugin after the batch that each has out; return, by hook, up to
        where the plugin has seen the log. One that takes longer gets its batch again."""
        running = self._of.get(no)
        if running is None:
            return {}
        observers = running[1]
        for observer in observers:
            observer.end_soon()
        with trio.move_on_after(within_s):
            for observer in observers:
                await observer.finished.wait()
        self.stop(no)
        return {observer.hook: observer.position for observer in observers}

    def passed(self, message: Message) -> list[PluginObservation]:
        """Return, per observing hook that a stored message concerns, whether it is behind it."""
        return [
            PluginObservation(o.no, o.hook, message.log_pos <= o.position)
            for o in self._all
            if o.concerns(message)
        ]

    def statistics(self, no: str) -> dict[str, dict[str, int]]:
        """Return, per observing hook of a plugin, how far it lags, what it skipped and what was
        dropped because it lagged too far."""
        running = self._of.get(no)
        observers = () if running is None else running[1]
        return {
            o.hook: {"lag": o.lag, "skipped": o.skipped, "dropped": o.dropped} for o in observers
        }

    def _observer(self, supervisor: Supervisor, hook: str, spec: HookSpec) -> Observer:
        proxy = supervisor.proxy
        if hook == "receive":
            hand_over = Receivers(proxy, self._recipients, spec.bound).hand_over
        else:
            hand_over = proxy.persist_after
        return Observer(
            proxy,
            self._store,
            hook,
            hand_over,
            matches=compile_predicate(spec),
            from_beginning=spec.from_beginning,
            tell=partial(supervisor.ring.add, 0, HOST_STREAM),
            max_lag=self._max_lag,
            dropped=partial(self._dropped, supervisor.no, hook),
            skipped=partial(self._skipped, supervisor.no, hook),
        )

    def _note_all(self) -> None:
        self._all = tuple(o for _, observers in self._of.values() for o in observers)


async def _run_in(
    scope: trio.CancelScope,
    observer: Observer,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with scope:
        await observer.run(task_status=task_status)
