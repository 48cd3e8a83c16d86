"""The objects of the JSON-RPC form as structs; field names become camelCase on the wire.

Source: wire protocol, JSON-RPC. What clients may leave out may also be null.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from wkhost.types import Flags, Setting

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

NO_PERSIST, RED_DOT, SYNC_ONCE, DUP = (
    int(f) for f in (Flags.NO_PERSIST, Flags.RED_DOT, Flags.SYNC_ONCE, Flags.DUP)
)
RECEIPT, SIGNAL, STREAM, TOPIC = (
    int(s) for s in (Setting.RECEIPT, Setting.SIGNAL, Setting.STREAM, Setting.TOPIC)
)


class Header(Struct, rename="camel", omit_defaults=True):
    """The header flags as an object; false members are left out."""

    no_persist: bool | None = False
    red_dot: bool | None = False
    sync_once: bool | None = False
    dup: bool | None = False


class SettingObject(Struct, omit_defaults=True):
    """The setting bits that this form has, as an object."""

    receipt: bool | None = False
    signal: bool | None = False
    stream: bool | None = False
    topic: bool | None = False


SETTING_BITS = RECEIPT | SIGNAL | STREAM | TOPIC


def flags_of(header: Header | None) -> int:
    """Return the `Flags` bits of a header object."""
    if header is None:
        return 0
    return (
        (NO_PERSIST if header.no_persist else 0)
        | (RED_DOT if header.red_dot else 0)
        | (SYNC_ONCE if header.sync_once else 0)
        | (DUP if header.dup else 0)
    )


def setting_of(setting: SettingObject | None) -> int:
    """Return the `Setting` bits of a setting object."""
    if setting is None:
        return 0
    return (
        (RECEIPT if setting.receipt else 0)
        | (SIGNAL if setting.signal else 0)
        | (STREAM if setting.stream else 0)
        | (TOPIC if setting.topic else 0)
    )


_HEADERS = [
    Header(bool(f & NO_PERSIST), bool(f & RED_DOT), bool(f & SYNC_ONCE), bool(f & DUP))
    for f in range(16)
]


def header_object(flags: int) -> Header:
    """Return the header object of `Flags` bits."""
    return _HEADERS[flags & 15]


def setting_object(setting: int) -> SettingObject:
    """Return the setting object of `Setting` bits."""
    return SettingObject(
        bool(setting & RECEIPT),
        bool(setting & SIGNAL),
        bool(setting & STREAM),
        bool(setting & TOPIC),
    )


class ConnectParams(Struct, rename="camel", omit_defaults=True):
    uid: str
    token: str | None = None
    device_id: str | None = None
    device_flag: U8 | None = None
    client_timestamp: I64 | None = None
    version: U8 | None = None
    client_key: str | None = None


class SendParams(Struct, rename="camel", omit_defaults=True):
    channel_id: str
    channel_type: U8
    payload: Raw
    client_msg_no: str | None = None
    header: Header | None = None
    setting: SettingObject | None = None
    expire: U32 | None = None
    stream_no: str | None = None
    topic: str | None = None


class RecvackParams(Struct, rename="camel", omit_defaults=True):
    message_id: str | I64
    message_seq: U32 | None = None
    header: Header | None = None


class DisconnectParams(Struct, rename="camel", omit_defaults=True):
    reason_code: U8 | None = None
    reason: str | None = None


class SubscribeParams(Struct, rename="camel", omit_defaults=True):
    channel_id: str
    channel_type: U8
    sub_no: str | None = None
    param: str | None = None


class ConnectResult(Struct, rename="camel"):
    header: dict[str, bool]
    server_version: int
    server_key: str
    salt: str
    time_diff: int
    reason_code: int
    node_id: int


class SendResult(Struct, rename="camel"):
    header: Header
    message_id: str
    message_seq: int
    reason_code: int
    reason: str | UnsetType = UNSET


class RecvParams(Struct, rename="camel"):
    header: Header
    message_id: str
    message_seq: int
    client_msg_no: str
    timestamp: int
    channel_id: str
    channel_type: int
    from_uid: str
    payload: str
    setting: SettingObject | UnsetType = UNSET
    expire: int | UnsetType = UNSET
    topic: str | UnsetType = UNSET


class SubscribeResult(Struct, rename="camel"):
    sub_no: str
    channel_id: str
    channel_type: int
    action: int
    reason_code: int


class DisconnectNote(Struct, rename="camel"):
    reason_code: int
    reason: str


class EventParams(Struct):
    id: str
    type: str
    timestamp: int
    data: str


class ErrorObject(Struct):
    code: int
    message: str
