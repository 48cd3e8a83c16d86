"""JSON-RPC as a client speaks it: packets to requests, answers and notifications to packets."""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from wkhost.errors import LocalProtocolError, RemoteProtocolError
from wkhost.protocol.json_stream import JsonStream
from wkhost.protocol.jsonrpc_shapes import (
    SETTING_BITS,
    ConnectParams,
    ConnectResult,
    DisconnectNote,
    DisconnectParams,
    ErrorObject,
    EventParams,
    RecvackParams,
    RecvParams,
    SendParams,
    SendResult,
    SubscribeParams,
    SubscribeResult,
    flags_of,
    header_object,
    setting_object,
    setting_of,
)
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Event,
    Packet,
    Pong,
    Recv,
    Recvack,
    Send,
    Sendack,
    Sub,
    Suback,
)

T = TypeVar("T")


class _Incoming(Struct):
    jsonrpc: str
    method: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: ErrorObject | UnsetType = UNSET


_encode = msgspec.json.encode
_incoming = msgspec.json.Decoder(_Incoming)
_connect_result = msgspec.json.Decoder(ConnectResult)
_send_result = msgspec.json.Decoder(SendResult)
_subscribe_result = msgspec.json.Decoder(SubscribeResult)
_recv = msgspec.json.Decoder(RecvParams)
_event = msgspec.json.Decoder(EventParams)
_disconnect = msgspec.json.Decoder(DisconnectNote)


class JsonRpcClient:
    """Numbers its requests ("1", "2", ...) and knows what each id waits for."""

    def __init__(self, max_bytes: int) -> None:
        self._stream = JsonStream(max_bytes)
        self._last_id = 0
        self._waiting: dict[str, tuple[str, int]] = {}

    def _request(self, method: str, params: object, client_seq: int = 0) -> bytes:
        self._last_id += 1
        id_text = str(self._last_id)
        self._waiting[id_text] = method, client_seq
        return _encode({"jsonrpc": "2.0", "method": method, "params": params, "id": id_text})

    def _notification(self, method: str, params: object) -> bytes:
        return _encode({"jsonrpc": "2.0", "method": method, "params": params})

    def connect(self, packet: Connect) -> bytes:
        return self._request(
            "connect",
            ConnectParams(
                uid=packet.uid,
                token=packet.token,
                device_id=packet.device_id,
                device_flag=packet.device_flag,
                client_timestamp=packet.client_timestamp,
                version=packet.version,
            ),
        )

    def send(self, packet: Send) -> bytes:
        if packet.payload is None:
            raise LocalProtocolError("SEND: there is no payload")
        setting = packet.setting & SETTING_BITS
        params = SendParams(
            channel_id=packet.channel_id,
            channel_type=packet.channel_type,
            payload=Raw(b'"' + b2a_base64(packet.payload, newline=False) + b'"'),
            client_msg_no=packet.client_msg_no or None,
            header=header_object(packet.flags),
            setting=setting_object(setting) if setting else None,
            expire=packet.expire or None,
            stream_no=packet.stream_no or None,
            topic=packet.topic or None,
        )
        return self._request("send", params, packet.client_seq)

    def recvack(self, packet: Recvack) -> bytes:
        header = header_object(packet.flags)
        params = RecvackParams(str(packet.message_id), packet.message_seq, header)
        return self._notification("recvack", params)

    def ping(self) -> bytes:
        return self._request("ping", {})

    def subscribe(self, packet: Sub) -> bytes:
        params = SubscribeParams(
            packet.channel_id, packet.channel_type, packet.sub_no, packet.param
        )
        return self._request("unsubscribe" if packet.action else "subscribe", params)

    def disconnect(self, packet: Disconnect) -> bytes:
        return self._request("disconnect", DisconnectParams(packet.reason_code, packet.reason))

    def receive(self, data: bytes) -> list[Packet]:
        """Raises RemoteProtocolError for text that is not an answer or a known notification."""
        packets: list[Packet] = []
        self._stream.feed(data)
        while (text := self._stream.next()) is not None:
            incoming = _read(_incoming, text)
            if incoming.jsonrpc != "2.0":
                raise RemoteProtocolError("JSON-RPC: an object without version 2.0")
            if isinstance(incoming.method, str):
                packets.append(self._notified(incoming, incoming.method))
            else:
                packets.append(self._answered(incoming))
        return packets

    def _notified(self, incoming: _Incoming, method: str) -> Packet:
        if incoming.id is not UNSET or isinstance(incoming.params, UnsetType):
            raise RemoteProtocolError(f"JSON-RPC: {method}: has an id, or no params")
        match method:
            case "recv":
                return _to_recv(_read(_recv, incoming.params))
            case "event":
                e = _read(_event, incoming.params)
                return Event(e.id, e.type, e.timestamp, e.data.encode())
            case "disconnect":
                d = _read(_disconnect, incoming.params)
                return Disconnect(d.reason_code, d.reason)
            case _:
                raise RemoteProtocolError(f"JSON-RPC: unknown notification {method!r}")

    def _answered(self, incoming: _Incoming) -> Packet:
        if isinstance(incoming.id, UnsetType) or incoming.id not in self._waiting:
            raise RemoteProtocolError("JSON-RPC: an answer to no request")
        method, client_seq = self._waiting.pop(incoming.id)
        error, result = incoming.error, incoming.result
        if not isinstance(error, UnsetType):
            if method == "connect":
                return Connack(error.code)
            raise RemoteProtocolError(f"JSON-RPC: {method}: error {error.code}: {error.message}")
        if isinstance(result, UnsetType):
            raise RemoteProtocolError(f"JSON-RPC: {method}: neither result nor error")
        match method:
            case "connect":
                c = _read(_connect_result, result)
                return Connack(
                    c.reason_code,
                    c.time_diff,
                    c.server_key,
                    c.salt,
                    c.server_version,
                    c.node_id,
                )
            case "send":
                a = _read(_send_result, result)
                return Sendack(
                    client_seq=client_seq,
                    message_id=_message_id(a.message_id),
                    message_seq=a.message_seq,
                    reason_code=a.reason_code,
                    flags=flags_of(a.header),
                    text=a.reason if isinstance(a.reason, str) else "",
                )
            case "subscribe" | "unsubscribe":
                s = _read(_subscribe_result, result)
                return Suback(s.sub_no, s.channel_id, s.channel_type, s.action, s.reason_code)
            case "ping":
                return Pong()
            case _:
                raise RemoteProtocolError(f"JSON-RPC: {method}: has no answer")


def _to_recv(p: RecvParams) -> Recv:
    try:
        payload = a2b_base64(p.payload, strict_mode=True)
    except (Base64Error, ValueError) as e:
        raise RemoteProtocolError(f"JSON-RPC: recv: payload: {e}") from e
    return Recv(
        message_id=_message_id(p.message_id),
        message_seq=p.message_seq,
        timestamp=p.timestamp,
        from_uid=p.from_uid,
        channel_id=p.channel_id,
        channel_type=p.channel_type,
        client_msg_no=p.client_msg_no,
        payload=payload,
        flags=flags_of(p.header),
        setting=0 if isinstance(p.setting, UnsetType) else setting_of(p.setting),
        expire=0 if isinstance(p.expire, UnsetType) else p.expire,
        topic="" if isinstance(p.topic, UnsetType) else p.topic,
    )


def _message_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise RemoteProtocolError(f"JSON-RPC: messageId {text[:32]!r} is no decimal number")
    return int(text)


def _read(decoder: msgspec.json.Decoder[T], text: bytes | Raw) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RemoteProtocolError(f"JSON-RPC: {e}") from e
