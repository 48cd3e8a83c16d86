"""Calls in, verdicts out: finds the handler of each call, runs it and collects the answers.

Theory of operation. `deliver` runs sync handlers straight in its loop: no task and no await per
message, only one pause per SLICE of a large batch, so that its first answers leave while the rest
is decided. Calls of async handlers are queued; a runner task takes them one after
the other, and only when a handler really suspends does another runner take over the rest
(`_continue_elsewhere`, armed once per loop turn). A sync handler may return a coroutine, for the
calls that need one; it is queued like an async handler's call. Blocking handlers go to a bounded
pool. Every answer lands in the outbox; whoever sends takes all that gathered since the last frame,
so one frame carries at least what one loop turn decided. Each call is answered exactly once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from types import CoroutineType
from typing import Any

from plugin_sdk import convert
from plugin_sdk.config import Binding
from plugin_sdk.context import current_binding, current_call
from plugin_sdk.errors import ConfigError
from plugin_sdk.failures import FailureLog
from plugin_sdk.hooks import SPECS, HookSpec
from plugin_sdk.jobs import Handler, Job
from plugin_sdk.outbox import Outbox
from plugin_sdk.plugin import Plugin, bind_config
from plugin_sdk.pool import BlockingPool
from plugin_sdk.types import CONTINUE, Message, Refuse, Replace, Veto

SLICE = 256
"""Calls of sync handlers between two turns of the loop."""
_LIFECYCLE = ("health", "config_update", "stop")
_OBSERVED = ("channel_get", "user_get", "persist_after", "receive", "webhook")


class ProtocolError(Exception):
    """The host broke the rules of the stream."""


class Dispatcher:
    """The plugin's side of the stream, without the stream."""

    def __init__(
        self, plugin: Plugin, loop: asyncio.AbstractEventLoop, *, max_payload_bytes: int = 0
    ) -> None:
        self._plugin = plugin
        self._loop = loop
        self._max_payload_bytes = max_payload_bytes
        self._handlers = {
            name: Handler(getattr(plugin, name), mark, SPECS[name])
            for name, mark in plugin.hooks.items()
        }
        self.outbox = Outbox()
        self._binding = plugin._binding
        self._proposed: dict[int, Binding] = {}
        self._failures = FailureLog(plugin.log)
        self._queue: deque[Job] = deque()
        self._armed = False
        self._runners: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._pool: BlockingPool[Job] = BlockingPool(
            plugin.blocking_threads, loop, self._run_blocking, self._collect
        )

    # Calls in

    def deliver(self, batch: Any) -> Iterator[None]:
        """Take a CallBatch: run through this, in one context; it pauses where others may have a
        turn. Raises ProtocolError when its config number is unknown."""
        self._use_config(batch.config_number)
        current_binding.set(self._binding)
        if batch.send:
            yield from self._deliver_send(batch.send)
        for name in _OBSERVED:
            calls = getattr(batch, name)
            if calls:
                self._deliver_calls(name, calls)
        for name in _LIFECYCLE:
            for call in getattr(batch, name):
                getattr(self, "_deliver_" + name)(call)
        current_call.set(None)
        current_binding.set(None)

    def _use_config(self, number: int) -> None:
        if number in (0, self._binding.number):
            return
        binding = self._proposed.get(number)
        if binding is None:
            raise ProtocolError(f"config number {number} was never accepted by this plugin")
        self._binding = self._plugin._binding = binding
        self._proposed = {n: b for n, b in self._proposed.items() if n > number}

    def _deliver_send(self, calls: Any) -> Iterator[None]:
        handler = self._handlers.get("send")
        if handler is None:
            self._not_implemented("send", calls)
        elif handler.mark.batch:
            messages = [convert.message(call.message, call) for call in calls]
            only = calls[0] if len(calls) == 1 else None
            self._start(Job(handler, [call.call_id for call in calls], (messages,), only))
        elif handler.mark.blocking or handler.mark.is_async:
            for call in calls:
                args = (convert.message(call.message, call),)
                self._start(Job(handler, (call.call_id,), args, call))
        elif len(calls) <= SLICE:
            self._send_inline(handler, calls)
        else:
            for start in range(0, len(calls), SLICE):
                self._send_inline(handler, calls[start : start + SLICE])
                yield

    def _send_inline(self, handler: Handler, calls: Any) -> None:
        """The hot loop."""
        function = handler.function
        new = object.__new__
        set_call = current_call.set
        go_on = self.outbox.continued.append
        for call in calls:
            message = new(Message)
            message._wire = call.message
            message._call = call
            set_call(call)
            try:
                verdict = function(message)
            except Exception as error:  # noqa: BLE001 - the border of one plugin call
                self._fail(handler, (call.call_id,), error)
                continue
            if verdict is None:
                go_on(call.call_id)
            elif type(verdict) is CoroutineType:
                self._await_later(Job(handler, (call.call_id,), (), call), verdict)
            else:
                self._answer(handler, call.call_id, verdict, call)
        self.outbox.wake()

    def _deliver_calls(self, name: str, calls: Any) -> None:
        handler = self._handlers.get(name)
        if handler is None:
            self._not_implemented(name, calls)
            return
        arguments = handler.arguments
        assert arguments is not None
        for call in calls:
            self._start(Job(handler, (call.call_id,), arguments(call), call))

    def _deliver_health(self, call: Any) -> None:
        handler = self._handlers.get("health")
        if handler is None:
            self.outbox.go_on(call.call_id)
        else:
            self._start(Job(handler, (call.call_id,), (), call))

    def _deliver_config_update(self, call: Any) -> None:
        try:
            proposed = bind_config(type(self._plugin), call.config_json, call.config_number)
        except ConfigError as error:
            self.outbox.add(convert.verdict(call.call_id, Veto(_clip(str(error)))))
            return
        handler = self._handlers.get("config_update")
        if handler is None:
            self._proposed[proposed.number] = proposed
            self.outbox.go_on(call.call_id)
            return
        job = Job(handler, (call.call_id,), (proposed.value,), call)
        job.proposed = proposed
        self._start(job)

    def _deliver_stop(self, call: Any) -> None:
        self._run_beside(self._stop(call))

    def take_secrets(self, frame: Any) -> None:
        """Use other secrets from now on, and tell the plugin of what changed."""
        values = {secret.name: secret.value for secret in frame.secrets}
        changed = self._plugin.secrets.replace(values)
        if changed and "secrets_update" in self._handlers:
            self._run_beside(self._tell_secrets(changed))

    async def _tell_secrets(self, changed: list[str]) -> None:
        try:
            await self.lifecycle("secrets_update", changed)
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            self._failures.report("secrets_update", error)

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._runners.add(task)
        task.add_done_callback(self._runners.discard)

    def _not_implemented(self, name: str, calls: Any) -> None:
        for call in calls:
            self.outbox.add(convert.failed(call.call_id, f"the plugin has no {name} handler"))

    # Running handlers

    def _start(self, job: Job) -> None:
        mark = job.handler.mark
        job.binding = self._binding
        if mark.blocking:
            self._unanswered += 1
            self._pool.submit(job)
        elif mark.is_async:
            self._await_later(job, None)
        else:
            current_call.set(job.call)
            try:
                job.result = job.handler.function(*job.args)
            except Exception as error:  # noqa: BLE001 - the border of one plugin call
                job.error = error
            if type(job.result) is CoroutineType:
                self._await_later(job, job.result)
            else:
                self._finish(job)

    def _await_later(self, job: Job, work: Any) -> None:
        """Queue an async handler's call, or `work`, the coroutine that a sync one returned."""
        job.work = work
        job.binding = self._binding
        self._unanswered += 1
        self._queue.append(job)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._continue_elsewhere)

    def _continue_elsewhere(self) -> None:
        self._armed = False
        if self._queue:
            task = self._loop.create_task(self._run_queue())
            self._runners.add(task)
            task.add_done_callback(self._runners.discard)

    async def _run_queue(self) -> None:
        queue = self._queue
        while queue:
            job = queue.popleft()
            if queue:
                self._arm()
            current_call.set(job.call)
            current_binding.set(job.binding)
            try:
                job.result = await (job.work or job.handler.function(*job.args))
            except Exception as error:  # noqa: BLE001 - the border of one plugin call
                job.error = error
            except asyncio.CancelledError as error:
                job.error = error
            self._unanswered -= 1
            self._finish(job)
            if isinstance(job.error, asyncio.CancelledError):
                break
        if self._unanswered == 0:
            self._idle.set()

    def _run_blocking(self, job: Job) -> None:
        current_call.set(job.call)
        current_binding.set(job.binding)
        try:
            job.result = job.handler.function(*job.args)
        except BaseException as error:  # noqa: BLE001 - a thread of ours must outlive a handler
            job.error = error

    def _collect(self, jobs: deque[Job]) -> None:
        self._unanswered -= len(jobs)
        for job in jobs:
            self._finish(job)
        if self._unanswered == 0:
            self._idle.set()

    async def _stop(self, call: Any) -> None:
        while self._unanswered:
            self._idle.clear()
            await self._idle.wait()
        try:
            await self.lifecycle("stop", call.reason)
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            self._fail(self._handlers["stop"], (call.call_id,), error)
        else:
            self.outbox.go_on(call.call_id)
        self.outbox.close()

    async def lifecycle(self, name: str, *args: Any) -> None:
        """Run a handler that no call is about, if there is one. Raises what it raises."""
        handler = self._handlers.get(name)
        if handler is None:
            return
        if handler.mark.blocking:
            await asyncio.to_thread(handler.function, *args)
        elif handler.mark.is_async:
            await handler.function(*args)
        else:
            handler.function(*args)

    # Answers out

    def _finish(self, job: Job) -> None:
        handler = job.handler
        if job.error is not None:
            self._fail(handler, job.ids, job.error)
        elif handler.mark.batch:
            self._finish_batch(job)
        else:
            if job.proposed is not None and job.result is None:
                self._proposed[job.proposed.number] = job.proposed
            self._answer(handler, job.ids[0], job.result, job.call)
        self.outbox.wake()

    def _finish_batch(self, job: Job) -> None:
        result = job.result
        if not isinstance(result, Sequence) or len(result) != len(job.ids):
            got = len(result) if isinstance(result, Sequence) else type(result).__name__
            error = TypeError(f"expected a list of {len(job.ids)} verdicts, got {got}")
            self._fail(job.handler, job.ids, error)
            return
        for call_id, verdict in zip(job.ids, result, strict=True):
            self._answer(job.handler, call_id, verdict, None)

    def _answer(self, handler: Handler, call_id: int, answer: Any, call: Any) -> None:
        if answer is None or answer is CONTINUE:
            self.outbox.continued.append(call_id)
            return
        spec = handler.spec
        try:
            if type(answer) not in spec.answers:
                kind = type(answer).__name__
                raise TypeError(f"{spec.name} returned {kind}: expected {spec.allowed}")
            if type(answer) is type(CONTINUE):
                self.outbox.continued.append(call_id)
                return
            self._check(spec, answer, call)
            self.outbox.add(convert.verdict(call_id, answer))
        except (TypeError, ValueError) as error:
            self._fail(handler, (call_id,), error)

    def _check(self, spec: HookSpec, answer: Any, call: Any) -> None:
        if type(answer) is Replace:
            size, limit = len(answer.payload), self._max_payload_bytes
            if limit and size > limit:
                raise ValueError(f"Replace: payload: expected at most {limit} bytes, got {size}")
        elif type(answer) is Refuse and spec.name == "user_get" and not call.HasField("login"):
            raise ValueError("user_get returned Refuse: only a login can be refused")

    def _fail(self, handler: Handler, ids: Sequence[int], error: BaseException) -> None:
        self._failures.report(handler.spec.name, error)
        detail = self._plugin.secrets.redact(f"{type(error).__name__}: {error}")
        for call_id in ids:
            self.outbox.add(convert.failed(call_id, detail))


def _clip(text: str) -> str:
    """Make any text fit a refusal."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean.encode("utf-8", "replace")[:256].decode("utf-8", "ignore") or "refused"
