"""How rows are encoded: a msgpack array whose first element is the version of the record.

A new layout is a new struct with the next tag; the decoder of the union reads both. Numbers and
keys that are whole values (see `keys`) carry no version of their own: the schema version of the
data directory covers them.
"""

from __future__ import annotations

import msgspec

from wkhost.errors import StoreError
from wkhost.store.keys import split_message_key
from wkhost.types import ChannelInfo, DeviceRecord, Message


class MessageRow(msgspec.Struct, array_like=True, tag=1, gc=False):
    """A message without what its key tells (channel and message_seq)."""

    message_id: int
    from_uid: str
    client_msg_no: str
    payload: bytes
    flags: int
    setting: int
    expire: int
    topic: str
    timestamp: int
    log_pos: int
    hop: int


class LogRow(msgspec.Struct, array_like=True, tag=1):
    """The message keys of one commit, the last one at the row's log_pos."""

    keys: list[bytes]


class ChannelRow(msgspec.Struct, array_like=True, tag=1):
    """The flags of a channel."""

    large: bool
    ban: bool
    disband: bool
    send_ban: bool
    allow_stranger: bool


class MemberRow(msgspec.Struct, array_like=True, tag=1):
    """A member of a list. `role` is 0 for a member, 1 for an owner or manager."""

    role: int


class DeviceRow(msgspec.Struct, array_like=True, tag=1):
    """What a user's device logs in with."""

    token: str
    device_level: int


class PluginRow(msgspec.Struct, array_like=True, tag=1):
    """A value that a plugin keeps. `expires_at_ms` is milliseconds since the epoch, 0 = never."""

    value: bytes
    version: int
    expires_at_ms: int


class CacheRow(msgspec.Struct, array_like=True, tag=1):
    """A look-up's answer that may be used until `expires_at_ms`."""

    value: bytes
    expires_at_ms: int


class Member(msgspec.Struct, frozen=True):
    """One entry of a channel's list."""

    uid: str
    role: int


class PluginValue(msgspec.Struct, frozen=True):
    """A plugin's value; `version` is for compare-and-set, `expires_at_ms` 0 means never."""

    value: bytes
    version: int
    expires_at_ms: int


encode = msgspec.msgpack.Encoder().encode

_message = msgspec.msgpack.Decoder(MessageRow).decode
_log = msgspec.msgpack.Decoder(LogRow).decode
_channel = msgspec.msgpack.Decoder(ChannelRow).decode
_member = msgspec.msgpack.Decoder(MemberRow).decode
_device = msgspec.msgpack.Decoder(DeviceRow).decode
_plugin = msgspec.msgpack.Decoder(PluginRow).decode
_cache = msgspec.msgpack.Decoder(CacheRow).decode


def _damaged(family: str, error: msgspec.MsgspecError) -> StoreError:
    return StoreError(f"a row of family {family} cannot be read: {error}")


def encode_message(m: Message) -> bytes:
    """Encode the row of `m`; its key holds the rest."""
    return encode(
        MessageRow(
            m.message_id,
            m.from_uid,
            m.client_msg_no,
            m.payload,
            m.flags,
            m.setting,
            m.expire,
            m.topic,
            m.timestamp,
            m.log_pos,
            m.hop,
        )
    )


def decode_message(key: bytes, value: bytes) -> Message:
    """Return the message of a `message` row. Raises StoreError if the row is damaged."""
    channel_id, channel_type, message_seq = split_message_key(key)
    return decode_message_of(channel_id, channel_type, message_seq, value)


def decode_message_of(
    channel_id: str, channel_type: int, message_seq: int, value: bytes
) -> Message:
    """Return the message of a row whose key is known in parts. Raises StoreError."""
    try:
        r = _message(value)
    except msgspec.MsgspecError as e:
        raise _damaged("message", e) from e
    return Message(
        r.message_id,
        channel_id,
        channel_type,
        r.from_uid,
        r.client_msg_no,
        r.payload,
        r.flags,
        r.setting,
        r.expire,
        r.topic,
        r.timestamp,
        message_seq,
        r.log_pos,
        r.hop,
    )


def log_pos_of(value: bytes) -> int:
    """Return the log_pos of a `message` row. Raises StoreError."""
    try:
        return _message(value).log_pos
    except msgspec.MsgspecError as e:
        raise _damaged("message", e) from e


def decode_log(value: bytes) -> list[bytes]:
    """Return the message keys of a `log` row. Raises StoreError."""
    try:
        return _log(value).keys
    except msgspec.MsgspecError as e:
        raise _damaged("log", e) from e


def encode_channel(info: ChannelInfo) -> bytes:
    return encode(
        ChannelRow(info.large, info.ban, info.disband, info.send_ban, info.allow_stranger)
    )


def decode_channel(value: bytes) -> ChannelInfo:
    """Return the flags of a channel. Raises StoreError."""
    try:
        r = _channel(value)
    except msgspec.MsgspecError as e:
        raise _damaged("channel", e) from e
    return ChannelInfo(r.large, r.ban, r.disband, r.send_ban, r.allow_stranger)


def decode_role(value: bytes) -> int:
    """Return the role of a member. Raises StoreError."""
    try:
        return _member(value).role
    except msgspec.MsgspecError as e:
        raise _damaged("member", e) from e


def decode_device(value: bytes) -> DeviceRecord:
    """Return a device. Raises StoreError."""
    try:
        r = _device(value)
    except msgspec.MsgspecError as e:
        raise _damaged("user", e) from e
    return DeviceRecord(r.token, r.device_level)


def decode_plugin_value(value: bytes) -> PluginValue:
    """Return a plugin's value. Raises StoreError."""
    try:
        r = _plugin(value)
    except msgspec.MsgspecError as e:
        raise _damaged("plugin", e) from e
    return PluginValue(r.value, r.version, r.expires_at_ms)


def decode_cache(value: bytes) -> CacheRow:
    """Return a cached answer. Raises StoreError."""
    try:
        return _cache(value)
    except msgspec.MsgspecError as e:
        raise _damaged("cache", e) from e
