"""In-process plugins for tests: they implement `Target` and answer as they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wkhost.hooks.records import CallRecords
from wkhost.hooks.target import (
    Answer,
    Answers,
    ChannelGetCall,
    SendCall,
    UserGetCall,
    WebhookAnswer,
)
from wkhost.hooks.verdict import Failure
from wkhost.types import Message

AnyCall = SendCall | ChannelGetCall | UserGetCall


class ManualTarget:
    """Keeps the calls it gets in `calls`; the test answers them with `answer`.

    `room` False makes it refuse calls (overload); `ready` False makes it a plugin that is down.
    """

    def __init__(self, no: str, answers: Answers) -> None:
        self._no = no
        self._answers = answers
        self.ready = True
        self.room = True
        self.lines = CallRecords().lines(no, "1.0.0", 1)
        self.health_checks: list[Callable[[Answer], None]] = []
        self.calls: list[AnyCall] = []
        self.seen: list[Message] = []
        self.received: list[tuple[int, list[str]]] = []

    @property
    def no(self) -> str:
        return self._no

    def check_health(self, budget_s: float, reply: Callable[[Answer], None]) -> bool:
        if self.room:
            self.health_checks.append(reply)
        return self.room

    def _take(self, call: AnyCall) -> bool:
        if self.room:
            self.calls.append(call)
        return self.room

    def submit_send(self, call: SendCall) -> bool:
        return self._take(call)

    def submit_channel_get(self, call: ChannelGetCall) -> bool:
        return self._take(call)

    def submit_user_get(self, call: UserGetCall) -> bool:
        return self._take(call)

    async def persist_after(self, messages: Sequence[Message]) -> None:
        self.seen += messages

    async def receive(self, message: Message, uids: Sequence[str]) -> None:
        self.received.append((message.message_id, list(uids)))

    async def webhook(self, event: str, data_json: bytes) -> WebhookAnswer | Failure | None:
        return None

    def answer(self, answer: Answer, index: int = 0) -> None:
        """Answer the open call at `index`."""
        call = self.calls.pop(index)
        self._answers.answered(self._no, [(call.call_id, answer)])

    def send_call(self, index: int = 0) -> SendCall:
        call = self.calls[index]
        assert isinstance(call, SendCall)
        return call


class ScriptedTarget(ManualTarget):
    """Answers each call at once with what `script(call)` returns; None leaves it open."""

    def __init__(self, no: str, answers: Answers, script: Callable[[Any], Answer | None]) -> None:
        super().__init__(no, answers)
        self._script = script

    def _take(self, call: AnyCall) -> bool:
        if not super()._take(call):
            return False
        answer = self._script(call)
        if answer is not None:
            self.answer(answer, len(self.calls) - 1)
        return True
