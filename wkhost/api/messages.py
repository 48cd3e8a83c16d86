"""/message/… and a channel's history."""

from __future__ import annotations

import asyncio

from wkhost.api.answers import CHANNEL_NOT_FOUND, OK, Answer, json_answer
from wkhost.api.checks import check_payload, has_special, refuse_if
from wkhost.api.kernel import Kernel, as_api_error
from wkhost.api.schema import (
    ChannelMessageSync,
    Header,
    HeaderResp,
    MaxMessageSeqAnswer,
    MaxMessageSeqQuery,
    MessageResp,
    MessageSend,
    MessageSendBatch,
    MessagesResp,
    SendAnswer,
    SendBatchAnswer,
    SendResult,
)
from wkhost.errors import ReasonCode
from wkhost.link.contract import (
    GetMaxMessageSeq,
    MaxMessageSeq,
    MessagePage,
    MessageRecord,
    Response,
    SendMessage,
    Sent,
    SyncMessages,
)
from wkhost.types import SYSTEM_UID, ChannelType, Flags, Setting

_NO_PERSIST, _RED_DOT = int(Flags.NO_PERSIST), int(Flags.RED_DOT)
_SYNC_ONCE = int(Flags.SYNC_ONCE)
_SUCCESS = int(ReasonCode.SUCCESS)
_PERSON = int(ChannelType.PERSON)
_TEMP = int(ChannelType.TEMP)
_STREAM = int(Setting.STREAM)
_NO_TARGET = "无法处理发送消息请求！"
_BAD_CHANNEL = "频道ID不合法！"
_BATCH_WINDOW = 256
"""Sends of one batch request on their way at a time."""


async def send(kernel: Kernel, body: MessageSend) -> Answer:
    """Answered when the message's fate is known: stored, or refused with its reason."""
    check_payload(body.payload)
    channel_id = body.channel_id
    subscribers = [uid for uid in body.subscribers if uid] if body.subscribers else []
    if subscribers:
        refuse_if(not body.header.sync_once or channel_id != "", _NO_TARGET)
    else:
        refuse_if(not channel_id, _NO_TARGET)
        refuse_if(has_special(channel_id), _BAD_CHANNEL, CHANNEL_NOT_FOUND)
        refuse_if(body.channel_type == 0, "频道类型错误！")
    request = SendMessage(
        body.from_uid if body.from_uid.strip() else SYSTEM_UID,
        channel_id,
        _TEMP if subscribers else body.channel_type,
        body.payload,
        body.client_msg_no,
        _flags(body.header),
        _STREAM if body.is_stream else 0,
        body.expire,
        subscribers=subscribers,
    )
    sent = await kernel.ask(request, Sent)
    if sent.reason_code != _SUCCESS:
        return json_answer(SendAnswer(200, _refusal(sent)))
    if subscribers:
        return OK
    result = SendResult(sent.message_id, sent.client_msg_no, sent.message_seq)
    return json_answer(SendAnswer(200, result))


async def send_batch(kernel: Kernel, body: MessageSendBatch) -> Answer:
    refuse_if(not body.from_uid.strip(), "from_uid不能为空！")
    refuse_if(not body.subscribers, "subscribers不能为空！")
    check_payload(body.payload)
    flags = _flags(body.header)
    failures = SendBatchAnswer([], [])
    targets: list[str] = []
    for uid in body.subscribers:
        if has_special(uid):
            _fail(failures, uid, _BAD_CHANNEL)
        elif uid:  # an empty uid is nobody: nothing is sent and nothing fails
            targets.append(uid)
    for start in range(0, len(targets), _BATCH_WINDOW):
        window = targets[start : start + _BATCH_WINDOW]
        requests = [
            SendMessage(body.from_uid, uid, _PERSON, body.payload, flags=flags) for uid in window
        ]
        answers = await asyncio.gather(*[kernel.ask_any(request) for request in requests])
        for uid, answer in zip(window, answers, strict=True):
            reason = _failure_reason(answer)
            if reason:
                _fail(failures, uid, reason)
    return json_answer(failures)


async def sync(kernel: Kernel, body: ChannelMessageSync) -> Answer:
    refuse_if(not body.channel_id.strip(), "channel_id不能为空！", CHANNEL_NOT_FOUND)
    refuse_if(not body.login_uid.strip(), "login_uid不能为空！")
    request = SyncMessages(
        body.login_uid,
        body.channel_id,
        body.channel_type,
        body.start_message_seq,
        body.end_message_seq,
        body.limit,
        body.pull_mode,
    )
    page = await kernel.ask(request, MessagePage)
    messages = [message_resp(record) for record in page.messages]
    return json_answer(
        MessagesResp(body.start_message_seq, body.end_message_seq, int(page.more), messages)
    )


async def max_message_seq(kernel: Kernel, query: MaxMessageSeqQuery) -> Answer:
    refuse_if(not query.channel_id, "channel_id不能为空", CHANNEL_NOT_FOUND)
    named_by_peer = query.channel_type == _PERSON and "@" not in query.channel_id
    refuse_if(named_by_peer and not query.login_uid, "login_uid不能为空")
    request = GetMaxMessageSeq(query.channel_id, query.channel_type, query.login_uid)
    answer = await kernel.ask(request, MaxMessageSeq)
    return json_answer(MaxMessageSeqAnswer(answer.message_seq))


def message_resp(record: MessageRecord) -> MessageResp:
    """Shape a stored message for clients: system sender hidden, person channels by receiver."""
    flags = record.flags
    from_uid = "" if record.from_uid == SYSTEM_UID else record.from_uid
    channel_id = record.channel_id
    if record.channel_type == _PERSON:
        channel_id = _receiver(channel_id, from_uid)
    return MessageResp(
        header=_HEADERS[flags & 7],
        setting=record.setting,
        message_id=record.message_id,
        message_idstr=str(record.message_id),
        client_msg_no=record.client_msg_no,
        message_seq=record.message_seq,
        from_uid=from_uid,
        channel_id=channel_id,
        channel_type=record.channel_type,
        expire=record.expire,
        timestamp=record.timestamp,
        payload=record.payload,
        topic=record.topic,
    )


def _receiver(channel_id: str, from_uid: str) -> str:
    """Return the part of `u@v` that is not the sender, whoever asks.

    With a hidden sender neither part matches and the second wins; a self chat stays as it is.
    Source: HTTP API, MessageResp.
    """
    first, at, second = channel_id.partition("@")
    if not at or first == second:
        return channel_id
    return first if second == from_uid else second


def _headers() -> list[HeaderResp]:
    return [
        HeaderResp(
            int(bool(flags & _NO_PERSIST)),
            int(bool(flags & _RED_DOT)),
            int(bool(flags & _SYNC_ONCE)),
        )
        for flags in range(8)
    ]


_HEADERS = _headers()


def _flags(header: Header) -> int:
    flags = _NO_PERSIST if header.no_persist else 0
    if header.red_dot:
        flags |= _RED_DOT
    if header.sync_once:
        flags |= _SYNC_ONCE
    return flags


def _refusal(sent: Sent) -> SendResult:
    return SendResult(sent.message_id, sent.client_msg_no, 0, sent.reason_code, sent.reason)


def _failure_reason(answer: Response) -> str:
    """Say why a send of a batch failed; empty when it was accepted."""
    if type(answer) is not Sent:
        return as_api_error(answer).msg
    if answer.reason_code == _SUCCESS:
        return ""
    return answer.reason or f"reason_code {answer.reason_code}"


def _fail(failures: SendBatchAnswer, uid: str, reason: str) -> None:
    failures.fail_uids.append(uid)
    failures.reason.append(reason)
