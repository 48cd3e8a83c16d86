"""A call on its way to a plugin: what it asks, how it is encoded, who hears the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol

import msgspec

from wkhost.hooks.records import HookLines
from wkhost.hooks.target import (
    Answer,
    Answers,
    ChannelAnswer,
    ChannelGetCall,
    SendCall,
    UserAnswer,
    UserGetCall,
    WebhookAnswer,
)
from wkhost.hooks.verdict import Continue, Failure, Refuse, Replace
from wkhost.plugin_host import codec
from wkhost.plugin_host.handshake import Identity
from wkhost.types import Message

OVERHEAD_BYTES = 256
"""What a waiting call holds besides its payload, roughly."""

own_call_ids = count(1 << 48)
"""Ids of calls that the host itself makes, far above those of the dispatcher."""


_HOOK_OF: dict[type, str] = {
    SendCall: "send",
    ChannelGetCall: "channel_get",
    UserGetCall: "user_get",
}


class Carrier(Protocol):
    """What the encoding of a call needs of the session that carries it."""

    identity: Identity
    may_send: bool
    send_payload: bool

    def lineage_of_call(self, call_id: int, hop: int) -> bytes: ...

    def lineage_of_message(self, message: Message) -> bytes: ...


class Pending(msgspec.Struct, eq=False):
    """One call. `reply` None: the answer goes to the dispatcher.

    `encode` gets the call, the session it leaves by and the time, and returns the call's field of
    a batch; it runs when there is credit, so that the budget on the wire is what is really left.
    `estimate` is what it takes while it waits, in bytes, `size` what its field took. After
    `deadline` it is not sent any more. `moves` says whether a planned reload may issue the call
    again to the next generation; `lines` are then what it counts for.
    """

    call_id: int
    call: Any
    encode: Callable[[Pending, Carrier, float], bytes]
    allowed: tuple[type, ...]
    estimate: int = OVERHEAD_BYTES
    reply: Callable[[Answer], None] | None = None
    deadline: float = math.inf
    moves: bool = True
    attempt: int = 1
    size: int = 0
    lines: HookLines | None = None

    @property
    def hook(self) -> str:
        """The hook that is called, from what `call` is."""
        call = self.call
        return call if isinstance(call, str) else _HOOK_OF.get(type(call), "")


def deliver(
    answers: Answers, plugin_no: str, pendings: Sequence[Pending], failure: Failure
) -> None:
    """Answer every call with `failure`."""
    found: list[tuple[int, Answer]] = []
    for pending in pendings:
        if pending.reply is None:
            found.append((pending.call_id, failure))
        else:
            pending.reply(failure)
    if found:
        answers.answered(plugin_no, found)


SEND_ANSWERS = (Continue, Replace, Refuse)
_CHANNEL_ANSWERS = (Continue, ChannelAnswer)
_USER_ANSWERS = (Continue, UserAnswer)
_LOGIN_ANSWERS = (Continue, UserAnswer, Refuse)
_CONTINUE_ONLY = (Continue,)
_WEBHOOK_ANSWERS = (Continue, WebhookAnswer)
_LIFECYCLE_ANSWERS = (Continue, Refuse)


def channel_get(call: ChannelGetCall) -> Pending:
    encode = _encode_channel_get
    return Pending(call.call_id, call, encode, _CHANNEL_ANSWERS, deadline=call.deadline)


def user_get(call: UserGetCall) -> Pending:
    allowed = _LOGIN_ANSWERS if call.login else _USER_ANSWERS
    return Pending(call.call_id, call, _encode_user_get, allowed, deadline=call.deadline)


def persist_after(
    messages: Sequence[Message], budget_s: float, reply: Callable[[Answer], None]
) -> Pending:
    size = sum(len(message.payload) + OVERHEAD_BYTES for message in messages)

    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        spec = session.identity.manifest.hooks.get("persist_after")
        payload = spec is not None and spec.payload
        lineages = [session.lineage_of_message(m) for m in messages] if session.may_send else []
        content = codec.persist_after_call(
            pending.call_id, messages, int(budget_s * 1000), payload, lineages
        )
        return codec.field_bytes(codec.PERSIST_AFTER, content)

    # The observer itself offers the messages again, once this generation is done with them.
    return Pending(
        next(own_call_ids),
        "persist_after",
        encode,
        _CONTINUE_ONLY,
        OVERHEAD_BYTES + size,
        reply,
        moves=False,
    )


def receive(
    message: Message, uids: Sequence[str], budget_s: float, reply: Callable[[Answer], None]
) -> Pending:
    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        spec = session.identity.manifest.hooks.get("receive")
        payload = spec is not None and spec.payload
        lineage = session.lineage_of_message(message)
        content = codec.receive_call(
            pending.call_id, message, uids, int(budget_s * 1000), payload, lineage
        )
        return codec.field_bytes(codec.RECEIVE, content)

    size = OVERHEAD_BYTES + len(message.payload) + sum(map(len, uids))
    return Pending(next(own_call_ids), "receive", encode, _CONTINUE_ONLY, size, reply)


def webhook(
    event: str, data_json: bytes, budget_s: float, reply: Callable[[Answer], None]
) -> Pending:
    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        content = codec.webhook_call(pending.call_id, event, data_json, int(budget_s * 1000))
        return codec.field_bytes(codec.WEBHOOK, content)

    size = OVERHEAD_BYTES + len(data_json)
    return Pending(next(own_call_ids), "webhook", encode, _WEBHOOK_ANSWERS, size, reply)


def config_update(
    config_json: bytes, config_number: int, budget_s: float, reply: Callable[[Answer], None]
) -> Pending:
    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        content = codec.config_update_call(
            pending.call_id, config_json, config_number, int(budget_s * 1000)
        )
        return codec.field_bytes(codec.CONFIG_UPDATE, content)

    call_id, size = next(own_call_ids), OVERHEAD_BYTES + len(config_json)
    return Pending(call_id, "config_update", encode, _LIFECYCLE_ANSWERS, size, reply, moves=False)


def health(budget_s: float, reply: Callable[[Answer], None]) -> Pending:
    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        content = codec.health_call(pending.call_id, int(budget_s * 1000))
        return codec.field_bytes(codec.HEALTH, content)

    return Pending(
        next(own_call_ids), "health", encode, _LIFECYCLE_ANSWERS, reply=reply, moves=False
    )


def stop(reason: str, budget_s: float, reply: Callable[[Answer], None]) -> Pending:
    def encode(pending: Pending, session: Carrier, now: float) -> bytes:
        content = codec.stop_call(pending.call_id, reason, int(budget_s * 1000))
        return codec.field_bytes(codec.STOP, content)

    return Pending(next(own_call_ids), "stop", encode, _LIFECYCLE_ANSWERS, reply=reply, moves=False)


def _budget_ms(deadline: float, now: float) -> int:
    left = deadline - now
    return int(left * 1000) if left > 0 else 0


def encode_send(pending: Pending, session: Carrier, now: float) -> bytes:
    call: SendCall = pending.call
    left = call.deadline - now
    lineage = b""
    if session.may_send:
        lineage = session.lineage_of_call(call.call_id, call.message.hop)
    budget_ms = int(left * 1000) if left > 0 else 0
    return codec.send_field(call, pending.attempt, budget_ms, session.send_payload, lineage)


def _encode_channel_get(pending: Pending, session: Carrier, now: float) -> bytes:
    call: ChannelGetCall = pending.call
    content = codec.channel_get_call(call, _budget_ms(call.deadline, now))
    return codec.field_bytes(codec.CHANNEL_GET, content)


def _encode_user_get(pending: Pending, session: Carrier, now: float) -> bytes:
    call: UserGetCall = pending.call
    token = session.identity.manifest.capabilities.token
    content = codec.user_get_call(call, _budget_ms(call.deadline, now), token)
    return codec.field_bytes(codec.USER_GET, content)
