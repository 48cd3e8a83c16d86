"""The host's structs <-> protobuf, both ways. The only place that builds frames of the stream.

A call is serialised by itself, with the tag and length of its field in `CallBatch`, so that its
size is exact before it is sent and a batch is a plain join. Setting attributes one by one is the
cheapest way to fill a message (1.4 us against 2.3 with nested constructors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plugin_sdk.wire.v1 import plugin_pb2, types_pb2
from wkhost.hooks.target import (
    Answer,
    ChannelAnswer,
    ChannelGetCall,
    SendCall,
    UserAnswer,
    UserGetCall,
    WebhookAnswer,
)
from wkhost.hooks.verdict import MAX_REFUSE_TEXT_BYTES, Failure, Outcome, Refuse, Replace
from wkhost.plugin_host.output import escape
from wkhost.types import Flags, Message

_NO_PERSIST, _RED_DOT, _SYNC_ONCE = int(Flags.NO_PERSIST), int(Flags.RED_DOT), int(Flags.SYNC_ONCE)
_MAX_DETAIL = 1024


# --- batches -----------------------------------------------------------------------------------


def _tag(field: int) -> bytes:
    return bytes((field << 3 | 2,))


SEND, CHANNEL_GET, USER_GET, PERSIST_AFTER, RECEIVE, WEBHOOK, CONFIG_UPDATE, HEALTH, STOP = (
    _tag(field) for field in range(1, 10)
)
"""The fields of `CallBatch` as they stand on the wire."""
_CALLS = _tag(2)
_CONFIG_NUMBER = bytes((15 << 3,))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_VARINTS = tuple(_varint(n) for n in range(4096))
"""Most lengths there are; made once, because every call has one."""


def varint(value: int) -> bytes:
    return _VARINTS[value] if value < 4096 else _varint(value)


def field_bytes(tag: bytes, content: bytes) -> bytes:
    """Return one length-delimited field."""
    return tag + varint(len(content)) + content


def call_batch(fields: list[bytes], size: int, config_number: int) -> bytes:
    """Return the `HostFrame` that holds a `CallBatch` of `fields` (`size` bytes together)."""
    number = _CONFIG_NUMBER + varint(config_number)
    return b"".join((_CALLS, varint(size + len(number)), *fields, number))


# --- calls -------------------------------------------------------------------------------------


def fill_message(wire: types_pb2.Message, m: Message, payload: bool) -> None:
    """Copy `m` into `wire`, the payload only when it was granted."""
    wire.message_id = m.message_id
    wire.channel_id = m.channel_id
    wire.channel_type = m.channel_type
    wire.from_uid = m.from_uid
    wire.client_msg_no = m.client_msg_no
    if payload:
        wire.payload = m.payload
    if m.message_seq:
        wire.message_seq = m.message_seq
    if m.timestamp:
        wire.timestamp = m.timestamp
    if m.expire:
        wire.expire = m.expire
    if m.topic:
        wire.topic = m.topic
    flags = m.flags
    if flags & 7:
        wire.no_persist = bool(flags & _NO_PERSIST)
        wire.red_dot = bool(flags & _RED_DOT)
        wire.sync_once = bool(flags & _SYNC_ONCE)


def send_field(
    call: SendCall, attempt: int, budget_ms: int, payload: bool, lineage: bytes
) -> bytes:
    """Return the call as a field of `CallBatch`. The hot one, hence without helpers."""
    wire = plugin_pb2.SendCall()
    wire.call_id = call.call_id
    wire.attempt = attempt
    wire.budget_ms = budget_ms
    message = call.message
    inner = wire.message
    inner.message_id = message.message_id
    inner.channel_id = message.channel_id
    inner.channel_type = message.channel_type
    inner.from_uid = message.from_uid
    inner.client_msg_no = message.client_msg_no
    if payload:
        inner.payload = message.payload
    if message.expire or message.topic or message.flags & 7:
        fill_message(inner, message, payload)
    origin = call.origin
    wire.origin = origin.door
    if origin.conn_id:
        wire.conn_id = origin.conn_id
        wire.device_id = origin.device_id
        wire.device_flag = origin.device_flag
    if lineage:
        wire.lineage = lineage
    content = wire.SerializeToString()
    size = len(content)
    return SEND + (_VARINTS[size] if size < 4096 else _varint(size)) + content


def channel_get_call(call: ChannelGetCall, budget_ms: int) -> bytes:
    return plugin_pb2.ChannelGetCall(
        call_id=call.call_id,
        budget_ms=budget_ms,
        channel_id=call.channel_id,
        channel_type=call.channel_type,
    ).SerializeToString()


def user_get_call(call: UserGetCall, budget_ms: int, token: bool) -> bytes:
    wire = plugin_pb2.UserGetCall(
        call_id=call.call_id, budget_ms=budget_ms, uid=call.uid, device_flag=call.device_flag
    )
    if call.login:
        wire.login.device_id = call.device_id
        wire.login.token = call.token if token else ""
        wire.login.peer_host = call.peer_host
        wire.login.SetInParent()
    return wire.SerializeToString()


def persist_after_call(
    call_id: int,
    messages: Sequence[Message],
    budget_ms: int,
    payload: bool,
    lineages: Sequence[bytes],
) -> bytes:
    wire = plugin_pb2.PersistAfterCall(call_id=call_id, budget_ms=budget_ms, lineages=lineages)
    add = wire.messages.add
    for message in messages:
        fill_message(add(), message, payload)
    return wire.SerializeToString()


def receive_call(
    call_id: int,
    message: Message,
    uids: Sequence[str],
    budget_ms: int,
    payload: bool,
    lineage: bytes,
) -> bytes:
    wire = plugin_pb2.ReceiveCall(call_id=call_id, budget_ms=budget_ms, uids=uids, lineage=lineage)
    fill_message(wire.message, message, payload)
    return wire.SerializeToString()


def webhook_call(call_id: int, event: str, data_json: bytes, budget_ms: int) -> bytes:
    return plugin_pb2.WebhookCall(
        call_id=call_id, budget_ms=budget_ms, event=event, data_json=data_json
    ).SerializeToString()


def config_update_call(
    call_id: int, config_json: bytes, config_number: int, budget_ms: int
) -> bytes:
    return plugin_pb2.ConfigUpdateCall(
        call_id=call_id,
        budget_ms=budget_ms,
        config_json=config_json,
        config_number=config_number,
    ).SerializeToString()


def health_call(call_id: int, budget_ms: int) -> bytes:
    return plugin_pb2.HealthCall(call_id=call_id, budget_ms=budget_ms).SerializeToString()


def stop_call(call_id: int, reason: str, budget_ms: int) -> bytes:
    return plugin_pb2.StopCall(
        call_id=call_id, budget_ms=budget_ms, reason=reason
    ).SerializeToString()


# --- answers -----------------------------------------------------------------------------------


def read_verdict(verdict: plugin_pb2.Verdict) -> Answer | None:
    """Return what a verdict says, a Failure where its content breaks the rules of an answer.

    None: the verdict holds no answer that this host knows, which breaks the stream itself.
    """
    kind = verdict.WhichOneof("answer")
    reader = _READERS.get(kind or "")
    return None if reader is None else reader(getattr(verdict, kind or ""))


def _crash(detail: str) -> Failure:
    return Failure(Outcome.CRASH, detail)


def _replace(wire: plugin_pb2.Replace) -> Answer:
    return Replace(wire.payload)


def _refuse(wire: plugin_pb2.Refuse) -> Answer:
    code, text = wire.code, wire.text
    if not 2 <= code <= 255:
        return _crash(f"refuse.code: expected 2 to 255, got {code}")
    if len(text.encode()) > MAX_REFUSE_TEXT_BYTES:
        return _crash(f"refuse.text: expected at most {MAX_REFUSE_TEXT_BYTES} bytes")
    if not text.isprintable():
        return _crash("refuse.text: expected no control characters")
    return Refuse(code, text)


def _failed(wire: plugin_pb2.Failed) -> Answer:
    return _crash(escape(wire.detail[:_MAX_DETAIL]) or "the handler failed")


def _channel(wire: plugin_pb2.ChannelAnswer) -> Answer:
    return ChannelAnswer(
        large=_given(wire, "large"),
        ban=_given(wire, "ban"),
        disband=_given(wire, "disband"),
        send_ban=_given(wire, "send_ban"),
        allow_stranger=_given(wire, "allow_stranger"),
        ttl_s=wire.ttl_ms / 1000,
    )


def _user(wire: plugin_pb2.UserAnswer) -> Answer:
    level = _given(wire, "device_level")
    if level not in (None, 0, 1):
        return _crash(f"user.device_level: expected 0 or 1, got {level}")
    return UserAnswer(
        token=_given(wire, "token"),
        device_level=level,
        ban=_given(wire, "ban"),
        send_ban=_given(wire, "send_ban"),
        authenticated=_given(wire, "authenticated"),
        ttl_s=wire.ttl_ms / 1000,
    )


def _webhook(wire: plugin_pb2.WebhookAnswer) -> Answer:
    action = _ACTIONS.get(wire.action)
    if action is None:
        return _crash(f"webhook.action: expected 1 to 3, got {wire.action}")
    return WebhookAnswer(action, wire.data_json if action == "change" else b"")


def _given(wire: Any, field: str) -> Any:
    return getattr(wire, field) if wire.HasField(field) else None


_ACTIONS: dict[int, str] = {
    plugin_pb2.WebhookAnswer.CHANGE: "change",
    plugin_pb2.WebhookAnswer.DROP: "drop",
    plugin_pb2.WebhookAnswer.DELIVERED: "delivered",
}
_READERS: dict[str, Callable[[Any], Answer]] = {
    "replace": _replace,
    "refuse": _refuse,
    "failed": _failed,
    "channel": _channel,
    "user": _user,
    "webhook": _webhook,
}
