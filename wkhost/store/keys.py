"""The ordered key layout. Pure functions from names to bytes and back.

Numbers are big-endian, so that the order of keys is the order of numbers. Strings inside a key
are UTF-8 behind a u16 length, which keeps one name from being the prefix of another; the last
string of a key has no length, so that its rows are ordered by it.

====================  ==========================================  ===============================
family                key                                         value
====================  ==========================================  ===============================
message               channel, message_seq u64                    record `MessageRow`
log                   last log_pos u64 of the segment             record `LogRow`: message keys
message_id            message_id u64                              message key
client_msg_no         channel, client_msg_no str, from_uid        message_id, message_seq, log_pos
channel               channel                                     record `ChannelRow`
member                channel, kind u8, uid                       record `MemberRow`
user                  "d", uid str, device_flag u8                record `DeviceRow`
user                  "s", uid (a system uid)                     empty
user                  "u", uid (the user exists)                  empty
plugin                plugin_no str, key                          record `PluginRow`
cache                 key bytes                                   record `CacheRow`
meta                  name                                        bytes, as its owner likes
====================  ==========================================  ===============================

"channel" is channel_type u8, channel_id str. A message key is the key of its row in `message`;
`log` and `message_id` point to the row by it. One `log` row holds the messages of one commit
(at most `LOG_SEGMENT`) in log_pos order, without gaps, under the last log_pos.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from struct import Struct

MESSAGE = "message"
LOG = "log"
MESSAGE_ID = "message_id"
CLIENT_MSG_NO = "client_msg_no"
CHANNEL = "channel"
MEMBER = "member"
USER = "user"
PLUGIN = "plugin"
CACHE = "cache"
META = "meta"
FAMILIES = (
    MESSAGE,
    LOG,
    MESSAGE_ID,
    CLIENT_MSG_NO,
    CHANNEL,
    MEMBER,
    USER,
    PLUGIN,
    CACHE,
    META,
)
SCANNED_FAMILIES = frozenset({MESSAGE, LOG})
"""Families read in ranges; all others are read by key and carry a bloom filter."""

LOG_SEGMENT = 256
"""Most messages of one `log` row."""

_CACHED_LENGTH = 128
"""Longer ids are not cached, so that the cache stays within a few MiB whatever clients send."""

MAX_U64 = 2**64 - 1

_U64 = Struct(">Q")
_CLIENT_VALUE = Struct(">QQQ")

u64 = _U64.pack
"""Encode a number as the eight bytes that sort like it."""
client_value = _CLIENT_VALUE.pack
"""Encode (message_id, message_seq, log_pos), the value of a `client_msg_no` row."""


class MemberKind(IntEnum):
    """The lists of a channel."""

    SUBSCRIBER = 1
    DENYLIST = 2
    ALLOWLIST = 3


def string(text: str) -> bytes:
    """Encode `text` as UTF-8 behind its u16 length. Raises OverflowError above 65,535 bytes."""
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def channel(channel_id: str, channel_type: int) -> bytes:
    """Return the prefix of a channel's rows; the hot path asks for it once per message."""
    if len(channel_id) <= _CACHED_LENGTH:
        return _cached_channel(channel_id, channel_type)
    return channel_type.to_bytes(1, "big") + string(channel_id)


@lru_cache(maxsize=16384)
def _cached_channel(channel_id: str, channel_type: int) -> bytes:
    return channel_type.to_bytes(1, "big") + string(channel_id)


def split_message_key(key: bytes) -> tuple[str, int, int]:
    """Return (channel_id, channel_type, message_seq) of a message key."""
    return key[3:-8].decode(), key[0], _U64.unpack_from(key, len(key) - 8)[0]


def seq_of(message_key: bytes) -> int:
    """Return the message_seq of a message key."""
    return int.from_bytes(message_key[-8:], "big")


def split_client_value(value: bytes) -> tuple[int, int, int]:
    """Return (message_id, message_seq, log_pos)."""
    message_id, message_seq, log_pos = _CLIENT_VALUE.unpack(value)
    return message_id, message_seq, log_pos


def log_pos_of(key: bytes) -> int:
    """Return the last log_pos of a `log` row."""
    pos: int = _U64.unpack(key)[0]
    return pos


def client_msg_no(channel_key: bytes, number: str, from_uid: str) -> bytes:
    data = number.encode()
    return channel_key + len(data).to_bytes(2, "big") + data + from_uid.encode()


def members(kind: int, channel_id: str, channel_type: int) -> bytes:
    """Return the prefix of one list of a channel."""
    return channel(channel_id, channel_type) + kind.to_bytes(1, "big")


def device(uid: str, device_flag: int) -> bytes:
    return devices(uid) + device_flag.to_bytes(1, "big")


def devices(uid: str) -> bytes:
    """Return the prefix of a user's devices."""
    return b"d" + string(uid)


def user(uid: str) -> bytes:
    return b"u" + uid.encode()


SYSTEM_UIDS = b"s"
"""The prefix of all system uids."""


def system_uid(uid: str) -> bytes:
    return SYSTEM_UIDS + uid.encode()


def plugin(plugin_no: str) -> bytes:
    """Return the prefix of one plugin's values."""
    return string(plugin_no)


def prefix_end(prefix: bytes) -> bytes:
    """Return the smallest key above every key that starts with `prefix`.

    `prefix` must hold a byte below 0xFF; every prefix of this layout does.
    """
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))


def after(key: bytes) -> bytes:
    """Return the smallest key above `key`."""
    return key + b"\0"
