"""Values that every layer shares. Imports nothing of ours.

Hot objects are msgspec structs without cyclic garbage collection: they are made in C and hold
no reference cycles.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from zlib import crc32

import msgspec

SYSTEM_UID = "____system"
"""Sender of HTTP sends that name none; clients see it as an empty uid."""
SYSTEM_DEVICE_ID = "____device"
"""Device id of HTTP sends; refused from the network."""
MANAGER_UID = "____manager"
CMD_SUFFIX = "____cmd"
"""Appended to a channel id for the stored twin that holds its command messages."""
ONLINE_CMD_CHANNEL_ID = "systemcmdonline"
MAX_STRING_BYTES = 32767
"""Longest string on the wire: its u16 length is read as a signed number by clients."""


class ChannelType(IntEnum):
    """Kinds of channel; other numbers follow the generic rules. Source: wire protocol, Channels."""

    PERSON = 1
    GROUP = 2
    CUSTOMER_SERVICE = 3
    COMMUNITY = 4
    COMMUNITY_TOPIC = 5
    INFO = 6
    DATA = 7
    TEMP = 8
    LIVE = 9
    VISITORS = 10
    AGENT = 11
    AGENT_GROUP = 12


class DeviceFlag(IntEnum):
    APP = 0
    WEB = 1
    PC = 2
    SYSTEM = 99


class DeviceLevel(IntEnum):
    SLAVE = 0
    MASTER = 1


class Flags(IntFlag):
    """Low nibble of the fixed header of SEND, SENDACK, RECV and RECVACK."""

    NO_PERSIST = 1
    RED_DOT = 2
    SYNC_ONCE = 4
    DUP = 8


class Setting(IntFlag):
    """The `setting` byte of SEND and RECV."""

    STREAM = 0x02
    TOPIC = 0x08
    NO_ENCRYPT = 0x10
    SIGNAL = 0x20
    RECEIPT = 0x80


class Message(msgspec.Struct, gc=False):
    """One message as the kernel, the store and plugins know it.

    `channel_id` is the canonical (stored) id, `payload` the decrypted bytes, `timestamp` seconds
    since the epoch at storing, `expire` seconds (0 = never). `flags` holds `Flags`, `setting`
    holds `Setting` as plain numbers. `message_seq` and `log_pos` are 0 until the sequence stage
    gives them, and stay 0 for messages that are not stored. `hop` counts how many plugin-origin
    sends led to this one.
    """

    message_id: int
    channel_id: str
    channel_type: int
    from_uid: str
    client_msg_no: str
    payload: bytes
    flags: int = 0
    setting: int = 0
    expire: int = 0
    topic: str = ""
    timestamp: int = 0
    message_seq: int = 0
    log_pos: int = 0
    hop: int = 0


class ChannelInfo(msgspec.Struct, frozen=True):
    """The stored record of a channel. Flags as in the HTTP API."""

    large: bool = False
    ban: bool = False
    disband: bool = False
    send_ban: bool = False
    allow_stranger: bool = False


class DeviceRecord(msgspec.Struct, frozen=True):
    """What `/user/token` stored for one (uid, device_flag)."""

    token: str
    device_level: int


def person_channel_id(a: str, b: str) -> str:
    """Return the canonical id of the person chat of `a` and `b`, the same for either order.

    Source: wire protocol, Channels. On equal hashes the greater string comes first.
    """
    hash_a = crc32(a.encode())
    hash_b = crc32(b.encode())
    if hash_a > hash_b or (hash_a == hash_b and a >= b):
        return f"{a}@{b}"
    return f"{b}@{a}"
