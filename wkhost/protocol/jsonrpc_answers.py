"""Answers and notifications of the JSON-RPC form. No state; requests: jsonrpc.py.

Source: wire protocol, JSON-RPC. Ids are echoed as the JSON text that came; notifications have no
`id` key at all; message ids are decimal strings; payloads are base64.
"""

from __future__ import annotations

from binascii import b2a_base64

import msgspec
from msgspec import UNSET

from wkhost.errors import LocalProtocolError
from wkhost.protocol.jsonrpc_shapes import (
    SETTING_BITS,
    ConnectResult,
    DisconnectNote,
    ErrorObject,
    EventParams,
    RecvParams,
    SendResult,
    SubscribeResult,
    header_object,
    setting_object,
)
from wkhost.protocol.packets import Connack, Disconnect, Event, Recv, Sendack, Suback

_encoder = msgspec.json.Encoder()


def _encode(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as e:
        raise LocalProtocolError(f"a string is not encodable as UTF-8: {e.reason}") from e


def answer(id_text: bytes, result: object) -> bytes:
    """A result, under the id's own text. A notification (no id) has no answer: b""."""
    if not id_text:
        return b""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id_text, _encode(result))


def error(id_text: bytes, code: int, message: str) -> bytes:
    """An error answer; without an id it is null, as the standard has it."""
    body = _encode(ErrorObject(code, message))
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id_text or b"null", body)


def _notification(method: bytes, params: object) -> bytes:
    """A notification: it must not have the key `id` at all."""
    return b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (method, _encode(params))


def encode_connack(packet: Connack, id_text: bytes) -> bytes:
    """A success; refusals are `error`."""
    return answer(
        id_text,
        ConnectResult(
            {},
            packet.server_version,
            packet.server_key,
            packet.salt,
            packet.time_diff,
            packet.reason_code,
            packet.node_id,
        ),
    )


def encode_sendack(packet: Sendack, id_text: bytes) -> bytes:
    """Always a `result`, for refused messages too: clients look at reasonCode."""
    return answer(
        id_text,
        SendResult(
            header_object(packet.flags),
            str(packet.message_id),
            packet.message_seq,
            packet.reason_code,
            packet.text or UNSET,
        ),
    )


def encode_suback(packet: Suback, id_text: bytes) -> bytes:
    return answer(
        id_text,
        SubscribeResult(
            packet.sub_no,
            packet.channel_id,
            packet.channel_type,
            packet.action,
            packet.reason_code,
        ),
    )


def encode_recv(packet: Recv) -> bytes:
    """The header object is always there; ids are decimal strings, the payload base64."""
    return _notification(
        b"recv",
        RecvParams(
            header_object(packet.flags),
            str(packet.message_id),
            packet.message_seq,
            packet.client_msg_no,
            packet.timestamp,
            packet.channel_id,
            packet.channel_type,
            packet.from_uid,
            b2a_base64(packet.payload, newline=False).decode(),
            setting_object(packet.setting) if packet.setting & SETTING_BITS else UNSET,
            packet.expire or UNSET,
            packet.topic or UNSET,
        ),
    )


def encode_disconnect(packet: Disconnect) -> bytes:
    return _notification(b"disconnect", DisconnectNote(packet.reason_code, packet.reason))


def encode_event(packet: Event) -> bytes:
    """Clients demand a non-empty id and type, and data that is text."""
    if not packet.id or not packet.type:
        raise LocalProtocolError("event: id and type must not be empty")
    try:
        data = packet.data.decode()
    except UnicodeDecodeError as e:
        raise LocalProtocolError(f"event: data is not UTF-8: {e.reason}") from e
    return _notification(b"event", EventParams(packet.id, packet.type, packet.timestamp, data))
