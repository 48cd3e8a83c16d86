"""Protobuf to types and back: the only place that knows both.

Decoders of calls are cheap on purpose: a `Message` only points at the wire object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from plugin_sdk.types import (
    Channel,
    ChannelAnswer,
    ChannelQuery,
    Event,
    KvEntry,
    KvPage,
    Login,
    Message,
    MessagePage,
    OnlineDevice,
    Refuse,
    Replace,
    Sent,
    User,
    UserAnswer,
    UserQuery,
    Veto,
    WebhookAnswer,
)
from plugin_sdk.wire.v1 import host_pb2, plugin_pb2

VETO_CODE = 2
MAX_DETAIL_BYTES = 1024
_new = object.__new__
_ACTIONS = {
    "change": plugin_pb2.WebhookAnswer.CHANGE,
    "drop": plugin_pb2.WebhookAnswer.DROP,
    "delivered": plugin_pb2.WebhookAnswer.DELIVERED,
}


def message(wire: Any, call: Any = None) -> Message:
    """View a wire message; `call` is the call that brought it, if any."""
    view = _new(Message)
    view._wire = wire
    view._call = call
    return view


def _send(call: plugin_pb2.SendCall) -> tuple[Any, ...]:
    return (message(call.message, call),)


def _persist_after(call: plugin_pb2.PersistAfterCall) -> tuple[Any, ...]:
    if not call.lineages:
        return ([message(wire, call) for wire in call.messages],)
    pairs = zip(call.messages, call.lineages, strict=True)
    return ([message(wire, _Observed(call.budget_ms, lineage)) for wire, lineage in pairs],)


class _Observed:
    """What a message of a batch has of its call, with a lineage of its own."""

    __slots__ = ("budget_ms", "lineage")

    def __init__(self, budget_ms: int, lineage: bytes) -> None:
        self.budget_ms = budget_ms
        self.lineage = lineage


def _receive(call: plugin_pb2.ReceiveCall) -> tuple[Any, ...]:
    return (message(call.message, call), tuple(call.uids))


def _channel_get(call: plugin_pb2.ChannelGetCall) -> tuple[Any, ...]:
    return (ChannelQuery(call.channel_id, call.channel_type, call.budget_ms),)


def _user_get(call: plugin_pb2.UserGetCall) -> tuple[Any, ...]:
    login = None
    if call.HasField("login"):
        wire = call.login
        login = Login(wire.device_id, wire.token, wire.peer_host)
    return (UserQuery(call.uid, call.device_flag, login, call.budget_ms),)


def _webhook(call: plugin_pb2.WebhookCall) -> tuple[Any, ...]:
    return (Event(call.event, call.data_json, call.budget_ms),)


def _nothing(call: Any) -> tuple[Any, ...]:
    return ()


ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "send": _send,
    "persist_after": _persist_after,
    "receive": _receive,
    "channel_get": _channel_get,
    "user_get": _user_get,
    "webhook": _webhook,
    "health": _nothing,
}
"""By hook: the handler's arguments from a call."""


def verdict(call_id: int, answer: Any) -> plugin_pb2.Verdict:
    """Encode an answer other than continue. Raises TypeError or ValueError for a bad field."""
    wire = plugin_pb2.Verdict(call_id=call_id)
    if isinstance(answer, Replace):
        wire.replace.payload = answer.payload
    elif isinstance(answer, Refuse):
        wire.refuse.code = answer.code
        wire.refuse.text = answer.text
    elif isinstance(answer, Veto):
        wire.refuse.code = VETO_CODE
        wire.refuse.text = answer.text
    elif isinstance(answer, ChannelAnswer):
        _set_fields(wire.channel, answer)
        wire.channel.SetInParent()
    elif isinstance(answer, UserAnswer):
        _set_fields(wire.user, answer)
        wire.user.SetInParent()
    elif isinstance(answer, WebhookAnswer):
        if answer.action not in _ACTIONS:
            raise ValueError(f"WebhookAnswer: action: expected one of {', '.join(_ACTIONS)}")
        wire.webhook.action = _ACTIONS[answer.action]
        wire.webhook.data_json = answer.data_json
    else:
        raise TypeError(f"{type(answer).__name__} is no answer")
    return wire


def _set_fields(wire: Any, answer: ChannelAnswer | UserAnswer) -> None:
    for name in answer.__dataclass_fields__:
        value = getattr(answer, name)
        if value is not None:
            try:
                setattr(wire, name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{type(answer).__name__}: {name}: {error}") from None


def failed(call_id: int, detail: str) -> plugin_pb2.Verdict:
    """Encode a handler's failure."""
    wire = plugin_pb2.Verdict(call_id=call_id)
    text = detail.encode("utf-8", "replace")[:MAX_DETAIL_BYTES].decode("utf-8", "ignore")
    wire.failed.detail = text
    return wire


def answer(wire: plugin_pb2.Verdict) -> Any:
    """Decode a verdict, as the harness shows it; a failure is its detail as a string."""
    kind = wire.WhichOneof("answer")
    if kind == "replace":
        return Replace(wire.replace.payload)
    if kind == "refuse":
        return Refuse(wire.refuse.code, wire.refuse.text)
    if kind == "channel":
        return _get_fields(wire.channel, ChannelAnswer)
    if kind == "user":
        return _get_fields(wire.user, UserAnswer)
    if kind == "webhook":
        names = {number: name for name, number in _ACTIONS.items()}
        return WebhookAnswer(names[wire.webhook.action], wire.webhook.data_json)
    return wire.failed.detail


def _get_fields(wire: Any, kind: Any) -> Any:
    values = {field.name: value for field, value in wire.ListFields()}
    return kind(**values)


def send_request(
    *,
    channel_id: str,
    channel_type: int,
    payload: bytes,
    from_uid: str,
    client_msg_no: str,
    no_persist: bool,
    red_dot: bool,
    sync_once: bool,
    expire: int,
    lineage: bytes,
) -> host_pb2.SendMessageRequest:
    return host_pb2.SendMessageRequest(
        channel_id=channel_id,
        channel_type=channel_type,
        payload=payload,
        from_uid=from_uid,
        client_msg_no=client_msg_no,
        no_persist=no_persist,
        red_dot=red_dot,
        sync_once=sync_once,
        expire=expire,
        lineage=lineage,
    )


def sent(wire: host_pb2.SendMessageResponse) -> Sent:
    return Sent(
        wire.message_id, wire.message_seq, wire.reason_code, wire.reason, wire.client_msg_no
    )


def messages_request(message_ids: Iterable[int]) -> host_pb2.GetMessagesRequest:
    return host_pb2.GetMessagesRequest(message_ids=message_ids)


def messages(wire: host_pb2.GetMessagesResponse) -> list[Message]:
    return [message(each) for each in wire.messages]


def list_request(
    channel_id: str, channel_type: int, first_seq: int, last_seq: int, limit: int, newest: bool
) -> host_pb2.ListMessagesRequest:
    return host_pb2.ListMessagesRequest(
        channel_id=channel_id,
        channel_type=channel_type,
        first_seq=first_seq,
        last_seq=last_seq,
        limit=limit,
        newest_first=newest,
    )


def message_page(wire: host_pb2.ListMessagesResponse) -> MessagePage:
    return MessagePage([message(each) for each in wire.messages], wire.more)


def channel_request(channel_id: str, channel_type: int) -> host_pb2.GetChannelRequest:
    return host_pb2.GetChannelRequest(channel_id=channel_id, channel_type=channel_type)


def channel(wire: host_pb2.GetChannelResponse) -> Channel:
    return Channel(
        exists=wire.exists,
        large=wire.large,
        ban=wire.ban,
        disband=wire.disband,
        send_ban=wire.send_ban,
        allow_stranger=wire.allow_stranger,
        subscriber_count=wire.subscriber_count,
        last_message_seq=wire.last_message_seq,
    )


def user_request(uid: str) -> host_pb2.GetUserRequest:
    return host_pb2.GetUserRequest(uid=uid)


def user(wire: host_pb2.GetUserResponse) -> User:
    online = tuple(
        OnlineDevice(each.device_flag, each.device_level, each.device_id) for each in wire.online
    )
    return User(wire.exists, online, wire.system)


def kv_get_request(key: bytes) -> host_pb2.KvGetRequest:
    return host_pb2.KvGetRequest(key=key)


def kv_entry(key: bytes, wire: host_pb2.KvGetResponse) -> KvEntry | None:
    return KvEntry(key, wire.value, wire.version) if wire.found else None


def kv_put_request(
    key: bytes, value: bytes, ttl_ms: int, if_version: int | None
) -> host_pb2.KvPutRequest:
    return host_pb2.KvPutRequest(key=key, value=value, ttl_ms=ttl_ms, if_version=if_version)


def kv_delete_request(key: bytes, if_version: int | None) -> host_pb2.KvDeleteRequest:
    return host_pb2.KvDeleteRequest(key=key, if_version=if_version)


def kv_scan_request(prefix: bytes, after: bytes, limit: int) -> host_pb2.KvScanRequest:
    return host_pb2.KvScanRequest(prefix=prefix, after=after, limit=limit)


def kv_page(wire: host_pb2.KvScanResponse) -> KvPage:
    return KvPage([KvEntry(e.key, e.value, e.version) for e in wire.entries], wire.more)
