"""A plugin as the dispatcher sees it, whichever process is behind it now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from wkhost.errors import PluginError
from wkhost.hooks.records import CallRecord, CallRecords, HookLines
from wkhost.hooks.target import (
    Answer,
    Answers,
    ChannelGetCall,
    SendCall,
    UserGetCall,
    WebhookAnswer,
)
from wkhost.hooks.verdict import Continue, Failure, Outcome
from wkhost.plugin_host import calls
from wkhost.plugin_host.calls import Pending
from wkhost.plugin_host.session import Session
from wkhost.types import Message

PERSIST_AFTER_BUDGET_S = 30.0
RECEIVE_BUDGET_S = 10.0
WEBHOOK_BUDGET_S = 5.0

Make = Callable[[Callable[[Answer], None]], Pending]
"""Makes a call, given who hears its answer."""


class PluginProxy:
    """Implements `hooks.target.Target`. A call goes to the generation that is current when it is
    issued."""

    def __init__(self, no: str, version: str, answers: Answers, records: CallRecords) -> None:
        """`version` is what its failures count for until the first generation is there."""
        self.no = no
        self.session: Session | None = None
        self.lines: HookLines = records.lines(no, version, 0)
        self._records = records
        self._answers = answers
        self._switched = trio.Event()

    def __repr__(self) -> str:
        return f"<PluginProxy {self.no} {self.session!r}>"

    @property
    def ready(self) -> bool:
        session = self.session
        return session is not None and session.alive

    def switch(self, session: Session) -> None:
        """Make `session` current. Unsent calls of the old one, if it lives, move over at once."""
        old, self.session = self.session, session
        identity = session.identity
        self.lines = self._records.lines(self.no, identity.manifest.version, identity.generation)
        if old is not None and not old.failure:
            old.drain_into(self._issue_again)
        self._switched.set()
        self._switched = trio.Event()

    async def wait_ready(self) -> None:
        """Return when some generation can take calls."""
        while not self.ready:
            await self._switched.wait()

    def submit_send(self, call: SendCall) -> bool:
        pending = Pending(
            call.call_id,
            call,
            calls.encode_send,
            calls.SEND_ANSWERS,
            calls.OVERHEAD_BYTES + len(call.message.payload),
            None,
            call.deadline,
        )
        session = self.session
        if session is not None and session.alive:
            return session.submit(pending)
        return self._submit(pending)

    def submit_channel_get(self, call: ChannelGetCall) -> bool:
        return self._submit(calls.channel_get(call))

    def submit_user_get(self, call: UserGetCall) -> bool:
        return self._submit(calls.user_get(call))

    def check_health(self, budget_s: float, reply: Callable[[Answer], None]) -> bool:
        return self._submit(calls.health(budget_s, reply))

    async def persist_after(self, messages: Sequence[Message]) -> None:
        """Raises PluginError when it failed, died or took too long."""
        budget_s = PERSIST_AFTER_BUDGET_S
        answer = await self._ask(
            "persist_after",
            lambda reply: calls.persist_after(messages, budget_s, reply),
            budget_s,
        )
        self._need_continue("persist_after", answer)

    async def receive(self, message: Message, uids: Sequence[str]) -> None:
        """Raises PluginError when it failed, died or took too long."""
        await self.receive_all([(message, uids)])

    async def receive_all(self, items: Sequence[tuple[Message, Sequence[str]]]) -> None:
        """Issue one `receive` call for each of `items`, in order, and wait for all answers.

        Raises PluginError, after all have ended, when any failed, died or took too long.
        """
        budget_s = RECEIVE_BUDGET_S
        makes = [partial(calls.receive, message, uids, budget_s) for message, uids in items]
        answers = await self._ask_all("receive", makes, budget_s)
        for answer in answers:
            self._need_continue("receive", answer)

    async def webhook(self, event: str, data_json: bytes) -> WebhookAnswer | Failure | None:
        budget_s = WEBHOOK_BUDGET_S
        answer = await self._ask(
            "webhook", lambda reply: calls.webhook(event, data_json, budget_s, reply), budget_s
        )
        return answer if isinstance(answer, WebhookAnswer | Failure) else None

    async def config_update(self, config_json: bytes, number: int, budget_s: float) -> Answer:
        """Offer a configuration to the current generation; anything but Continue is a veto."""
        return await self._ask(
            "config_update",
            lambda reply: calls.config_update(config_json, number, budget_s, reply),
            budget_s,
        )

    # --- issuing --------------------------------------------------------------------------------

    def _submit(self, pending: Pending) -> bool:
        session = self.session
        if session is None or not session.alive:
            failure = Failure(Outcome.CRASH, f"{self.no}: not running")
            calls.deliver(self._answers, self.no, (pending,), failure)
            return True
        return session.submit(pending)

    def _issue_again(self, pendings: list[Pending]) -> None:
        """Hand calls of the generation before to the current one; they count for it from now on."""
        for pending in pendings:
            pending.lines = self.lines
        self._answers.moved(self.lines, [each.call_id for each in pendings if each.reply is None])
        for pending in pendings:
            if not self._submit(pending):
                failure = Failure(Outcome.OVERLOAD, f"{self.no}: too much waits")
                calls.deliver(self._answers, self.no, (pending,), failure)

    async def _ask(self, hook: str, make: Make, budget_s: float) -> Answer:
        """Issue a call of the host's own and wait for its answer, a Failure included."""
        return (await self._ask_all(hook, [make], budget_s))[0]

    async def _ask_all(self, hook: str, makes: Sequence[Make], budget_s: float) -> list[Answer]:
        """Issue calls in order and wait until each has its answer, a Failure included."""
        found: dict[int, Answer] = {}
        answered = trio.Event()
        lines = self.lines
        called_at = trio.current_time()
        over = False

        def record(index: int) -> CallRecord:
            now = pendings[index].lines
            return (lines if now is None else now)[hook].record

        def reply(index: int, answer: Answer) -> None:
            if over:
                return  # counted as a timeout already
            found[index] = answer
            record(index).took(trio.current_time() - called_at)
            record(index).count(answer)
            if len(found) == len(makes):
                answered.set()

        pendings = [make(partial(reply, index)) for index, make in enumerate(makes)]
        for index, pending in enumerate(pendings):
            if not self._submit(pending):
                reply(index, Failure(Outcome.OVERLOAD, f"{self.no}: too much waits"))
        with trio.move_on_after(budget_s):
            await answered.wait()
        over = True
        late = Failure(Outcome.TIMEOUT, f"{self.no}: no answer within {budget_s:.0f} s")
        for index in range(len(makes)):
            if index not in found:
                record(index).count(late)
        return [found.get(index, late) for index in range(len(makes))]

    def _need_continue(self, hook: str, answer: Answer) -> None:
        if not isinstance(answer, Continue):
            detail = answer.detail if isinstance(answer, Failure) else type(answer).__name__
            raise PluginError(f"{self.no}: {hook} failed: {detail}")
