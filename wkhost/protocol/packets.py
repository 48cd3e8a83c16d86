"""The packets of the protocol as plain values, the same for the binary form and JSON-RPC.

Field names are the protocol's. Flags, settings and codes are plain numbers here; `wkhost.types`
and `wkhost.errors` name them. Payloads are the decrypted bytes: the connection decrypts what
comes in and encrypts what goes out.
"""

from __future__ import annotations

import msgspec


class Connect(msgspec.Struct, gc=False):
    """Log in. `client_timestamp` is milliseconds (some clients send seconds: never rely on it)."""

    version: int
    device_flag: int
    device_id: str
    uid: str
    token: str
    client_timestamp: int = 0
    client_key: str = ""


class Connack(msgspec.Struct, gc=False):
    """Answer to CONNECT. `server_version` is 0 where the client's version does not carry it."""

    reason_code: int
    time_diff: int = 0
    server_key: str = ""
    salt: str = ""
    server_version: int = 0
    node_id: int = 0


class Send(msgspec.Struct, gc=False):
    """A message to send. `payload` is None when it could not be decrypted (answer reason 9)."""

    client_seq: int
    client_msg_no: str
    channel_id: str
    channel_type: int
    payload: bytes | None
    flags: int = 0
    setting: int = 0
    expire: int = 0
    topic: str = ""
    stream_no: str = ""


class Sendack(msgspec.Struct, gc=False):
    """The fate of one SEND. `text` reaches JSON-RPC clients only: the binary form has no room."""

    client_seq: int
    message_id: int
    message_seq: int
    reason_code: int
    flags: int = 0
    text: str = ""


class Recv(msgspec.Struct, gc=False):
    """A message as one recipient is to see it (ids rewritten, plain payload)."""

    message_id: int
    message_seq: int
    timestamp: int
    from_uid: str
    channel_id: str
    channel_type: int
    client_msg_no: str
    payload: bytes
    flags: int = 0
    setting: int = 0
    expire: int = 0
    topic: str = ""


class Recvack(msgspec.Struct, gc=False):
    message_id: int
    message_seq: int
    flags: int = 0


class Ping(msgspec.Struct, gc=False):
    pass


class Pong(msgspec.Struct, gc=False):
    pass


class Disconnect(msgspec.Struct, gc=False):
    reason_code: int
    reason: str = ""


class Sub(msgspec.Struct, gc=False):
    """Subscribe (`action` 0) or unsubscribe (1)."""

    sub_no: str
    channel_id: str
    channel_type: int
    action: int
    param: str = ""
    setting: int = 0


class Suback(msgspec.Struct, gc=False):
    sub_no: str
    channel_id: str
    channel_type: int
    action: int
    reason_code: int


class Event(msgspec.Struct, gc=False):
    """A server event; `timestamp` in milliseconds, `data` raw bytes. Never encrypted or acked."""

    id: str
    type: str
    timestamp: int
    data: bytes


Packet = (
    Connect
    | Connack
    | Send
    | Sendack
    | Recv
    | Recvack
    | Ping
    | Pong
    | Disconnect
    | Sub
    | Suback
    | Event
)
