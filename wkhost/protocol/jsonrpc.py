"""Requests of the JSON-RPC form, translated to packets. No state; answers: jsonrpc_answers.py.

Source: wire protocol, JSON-RPC. Ids are echoed as the JSON text that came. A request that cannot be
served raises `RpcError`, which is answered; text that is no request at all raises
RemoteProtocolError, which closes the connection.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, hexlify
from os import urandom
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from wkhost.errors import RemoteProtocolError
from wkhost.protocol.framing import LATEST_VERSION
from wkhost.protocol.jsonrpc_shapes import (
    TOPIC,
    ConnectParams,
    DisconnectParams,
    RecvackParams,
    SendParams,
    SubscribeParams,
    flags_of,
    setting_of,
)
from wkhost.protocol.packets import (
    Connect,
    Disconnect,
    Packet,
    Ping,
    Recvack,
    Send,
    Sub,
)
from wkhost.types import MAX_STRING_BYTES

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602

MAX_ID_BYTES = 256
"""Longest request id, as JSON text."""

T = TypeVar("T")


class RpcError(Exception):
    """A request that is answered with an error object. `id` is JSON text, b"" without one."""

    def __init__(self, code: int, message: str, id: bytes = b"") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.id = id


class _Envelope(Struct):
    jsonrpc: Raw | UnsetType = UNSET
    method: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    params: Raw | UnsetType = UNSET


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_value = msgspec.json.Decoder().decode
_connect_params = msgspec.json.Decoder(ConnectParams)
_send_params = msgspec.json.Decoder(SendParams)
_recvack_params = msgspec.json.Decoder(RecvackParams)
_disconnect_params = msgspec.json.Decoder(DisconnectParams)
_subscribe_params = msgspec.json.Decoder(SubscribeParams)
_encode = msgspec.json.Encoder().encode


class Request(Struct):
    """An inbound object. `id` is its JSON text, b"" for a notification."""

    method: str
    id: bytes
    params: Raw


def parse_request(text: bytes) -> Request:
    """Read the envelope. Raises RemoteProtocolError or RpcError."""
    try:
        text.decode()
        envelope = _decode_envelope(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RemoteProtocolError(f"JSON-RPC: not a JSON object: {e}") from e
    id_text = b"" if isinstance(envelope.id, UnsetType) else _check_id(bytes(envelope.id))
    if not isinstance(envelope.jsonrpc, UnsetType) and bytes(envelope.jsonrpc) != b'"2.0"':
        raise _invalid('jsonrpc: expected "2.0"', id_text)
    if isinstance(envelope.method, UnsetType):
        raise _invalid("method: missing", id_text)
    method = _value(envelope.method)
    if not isinstance(method, str):
        raise _invalid("method: expected a string", id_text)
    params = Raw(b"{}") if isinstance(envelope.params, UnsetType) else envelope.params
    return Request(method, id_text, Raw(b"{}") if bytes(params) == b"null" else params)


def _value(raw: Raw) -> Any:
    try:
        return _decode_value(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _check_id(text: bytes) -> bytes:
    """Null counts as absent; what is neither string nor number cannot be answered."""
    if text == b"null":
        return b""
    if len(text) > MAX_ID_BYTES:
        raise RemoteProtocolError(f"JSON-RPC: an id exceeds {MAX_ID_BYTES} bytes")
    value = _value(Raw(text))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RemoteProtocolError("JSON-RPC: id: expected a string or a number")
    return text


def _invalid(message: str, id_text: bytes) -> Exception:
    """A wrong envelope: answered if it has an id, else there is nobody to answer."""
    if id_text:
        return RpcError(INVALID_REQUEST, message, id_text)
    return RemoteProtocolError(f"JSON-RPC: {message}")


def _params(decoder: msgspec.json.Decoder[T], request: Request) -> T:
    try:
        params = decoder.decode(request.params)
    except (msgspec.DecodeError, RecursionError) as e:
        raise RpcError(INVALID_PARAMS, f"params: {e}", request.id) from e
    for name in params.__struct_fields__:  # type: ignore[attr-defined]
        value = getattr(params, name)
        if (
            isinstance(value, str)
            and len(value) > MAX_STRING_BYTES // 4
            and len(value.encode()) > MAX_STRING_BYTES
        ):
            raise RpcError(
                INVALID_PARAMS, f"params: {name} exceeds {MAX_STRING_BYTES} bytes", request.id
            )
    return params


def decode_connect(request: Request) -> Connect:
    """A version that is absent or 0 means the latest."""
    p = _params(_connect_params, request)
    return Connect(
        version=p.version or LATEST_VERSION,
        device_flag=p.device_flag or 0,
        device_id=p.device_id or "",
        uid=p.uid,
        token=p.token or "",
        client_timestamp=p.client_timestamp or 0,
        client_key=p.client_key or "",
    )


def decode_send(request: Request, client_seq: int) -> Send:
    """`client_seq` does not exist in this form: the connection gives its own."""
    p = _params(_send_params, request)
    bits = setting_of(p.setting) | (TOPIC if p.topic else 0)
    return Send(
        client_seq=client_seq,
        client_msg_no=p.client_msg_no or hexlify(urandom(16)).decode() + "0",
        channel_id=p.channel_id,
        channel_type=p.channel_type,
        payload=_payload(p.payload, request.id),
        flags=flags_of(p.header),
        setting=bits,
        expire=p.expire or 0,
        topic=p.topic or "",
        stream_no=p.stream_no or "",
    )


def _payload(raw: Raw, id_text: bytes) -> bytes:
    """Base64 text, or an object or array that becomes compact JSON."""
    try:
        value = _decode_value(raw)
        if isinstance(value, str):
            return a2b_base64(value.encode(), strict_mode=True)
        if isinstance(value, (dict, list)):
            return _encode(value)
    except (msgspec.DecodeError, RecursionError, Base64Error) as e:
        raise RpcError(INVALID_PARAMS, f"params: payload: {e}", id_text) from e
    raise RpcError(INVALID_PARAMS, "params: payload: expected base64 text or an object", id_text)


def decode_request(request: Request, client_seq: int) -> Packet:
    """Translate any request but `connect`. Raises RpcError."""
    match request.method:
        case "send":
            return decode_send(request, client_seq)
        case "recvack":
            return _decode_recvack(request)
        case "ping":
            return Ping()
        case "subscribe" | "unsubscribe":
            s = _params(_subscribe_params, request)
            action = int(request.method == "unsubscribe")
            return Sub(s.sub_no or "", s.channel_id, s.channel_type, action, s.param or "")
        case "disconnect":
            d = _params(_disconnect_params, request)
            return Disconnect(d.reason_code or 0, d.reason or "")
        case _:
            raise RpcError(METHOD_NOT_FOUND, f"method: unknown {request.method[:64]!r}", request.id)


def _decode_recvack(request: Request) -> Recvack:
    p = _params(_recvack_params, request)
    message_id = p.message_id
    if isinstance(message_id, str):
        digits = message_id.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise RpcError(
                INVALID_PARAMS, "params: messageId: expected a decimal number", request.id
            )
        message_id = int(message_id)
        if not -(2**63) <= message_id < 2**63:
            raise RpcError(INVALID_PARAMS, "params: messageId: expected 64 bits", request.id)
    return Recvack(message_id, p.message_seq or 0, flags_of(p.header))
