"""The bodies of the API: one struct per request, and the structs of its answers.

The annotations drive both the decoder (`go_json`) and the OpenAPI document: `U8`, `U32` and `U64`
bound integers (a plain `int` has 64 bits with sign), `Flag` is 0/1 (booleans are taken too),
`Payload` is bytes in one of the forms that clients send.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from wkhost.link.contract import Subscriber

U8 = Annotated[int, msgspec.Meta(ge=0, le=255)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec takes no bound beyond 63 bits
Flag = bool
Payload = bytes


class Header(msgspec.Struct):
    no_persist: Flag = False
    red_dot: Flag = False
    sync_once: Flag = False


class UserToken(msgspec.Struct):
    """Create or update a user's device token."""

    uid: str = ""
    token: str = ""
    device_flag: U8 = 0
    device_level: U8 = 0


class SystemUids(msgspec.Struct):
    uids: list[str] = []


class ChannelInfo(msgspec.Struct):
    """A channel's record; all five flags are overwritten, absent ones with 0."""

    channel_id: str = ""
    channel_type: U8 = 0
    large: Flag = False
    ban: Flag = False
    disband: Flag = False
    send_ban: Flag = False
    allow_stranger: Flag = False


class Channel(ChannelInfo):
    """A channel's record and members; `reset` removes the old members first."""

    reset: Flag = False
    subscribers: list[Subscriber] = []


class SubscriberAdd(msgspec.Struct):
    """Add members; `channel_type` 0 means 2 (group)."""

    channel_id: str = ""
    channel_type: U8 = 0
    reset: Flag = False
    temp_subscriber: Flag = False
    subscribers: list[Subscriber] = []


class SubscriberRemove(msgspec.Struct):
    channel_id: str = ""
    channel_type: U8 = 0
    subscribers: list[Subscriber] = []


class ChannelUids(msgspec.Struct):
    """Uids for a channel's blacklist or whitelist."""

    channel_id: str = ""
    channel_type: U8 = 0
    uids: list[str] = []


class MessageSend(msgspec.Struct):
    """One message to a channel, or with `sync_once` to exactly `subscribers`."""

    header: Header = msgspec.field(default_factory=Header)
    client_msg_no: str = ""
    is_stream: Flag = False
    from_uid: str = ""
    channel_id: str = ""
    channel_type: U8 = 0
    expire: U32 = 0
    subscribers: list[str] = []
    payload: Payload = b""


class MessageSendBatch(msgspec.Struct):
    """One person message per subscriber."""

    header: Header = msgspec.field(default_factory=Header)
    from_uid: str = ""
    subscribers: list[str] = []
    payload: Payload = b""


class ChannelMessageSync(msgspec.Struct):
    """A page of a channel's history; `end_message_seq` is exclusive."""

    login_uid: str = ""
    channel_id: str = ""
    channel_type: U8 = 0
    start_message_seq: U64 = 0
    end_message_seq: U64 = 0
    limit: int = 0
    pull_mode: int = 0


class MaxMessageSeqQuery(msgspec.Struct):
    channel_id: str = ""
    channel_type: U8 = 0
    login_uid: str = ""


# --- answers -----------------------------------------------------------------------------------


class HeaderResp(msgspec.Struct, frozen=True):
    no_persist: int
    red_dot: int
    sync_once: int


class MessageResp(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A stored message; `payload` is base64. `topic` is left out when empty."""

    header: HeaderResp
    setting: int
    message_id: int
    message_idstr: str
    client_msg_no: str
    message_seq: int
    from_uid: str
    channel_id: str
    channel_type: int
    expire: int
    timestamp: int
    payload: bytes
    topic: str = ""


class MessagesResp(msgspec.Struct, frozen=True):
    start_message_seq: int
    end_message_seq: int
    more: int
    messages: list[MessageResp]


class SendResult(msgspec.Struct, frozen=True):
    """What became of a message. A refused one is stored nowhere, has `message_seq` 0 and says why
    in `reason_code` (a number of the wire protocol) and `reason`."""

    message_id: int
    client_msg_no: str
    message_seq: int
    reason_code: int | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class SendAnswer(msgspec.Struct, frozen=True):
    status: int
    data: SendResult


class SendBatchAnswer(msgspec.Struct, frozen=True):
    """Parallel lists: who did not get the message, and why."""

    fail_uids: list[str]
    reason: list[str]


class MaxMessageSeqAnswer(msgspec.Struct, frozen=True):
    message_seq: int


class Status(msgspec.Struct, frozen=True):
    status: int


class Failure(msgspec.Struct, frozen=True):
    """Every 400: `msg` for people, `code` one of the guide's error numbers."""

    msg: str
    status: int
    code: int
