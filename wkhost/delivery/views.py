"""A stored message as one recipient sees it. Pure. Source: wire protocol, Channels and CMD."""

from __future__ import annotations

from wkhost.protocol.packets import Recv
from wkhost.types import CMD_SUFFIX, SYSTEM_UID, ChannelType, Flags, Message

_PERSON = int(ChannelType.PERSON)
_AGENT = int(ChannelType.AGENT)
_TEMP = int(ChannelType.TEMP)
_NO_RED_DOT = 0xF & ~int(Flags.RED_DOT)


def _view(m: Message, from_uid: str, channel_id: str, flags: int) -> Recv:
    return Recv(
        m.message_id,
        m.message_seq,
        m.timestamp,
        from_uid,
        channel_id,
        m.channel_type,
        m.client_msg_no,
        m.payload,
        flags,
        m.setting,
        m.expire,
        m.topic,
    )


def view_for_others(m: Message) -> Recv:
    """Return what everyone but the sender sees.

    In a person chat the channel is the sender; the system sender is shown as "".
    """
    from_uid = "" if m.from_uid == SYSTEM_UID else m.from_uid
    if m.channel_type == _PERSON:
        return _view(m, from_uid, from_uid, m.flags)
    return _view(m, from_uid, shown_channel_id(m), m.flags)


def view_for_sender(m: Message) -> Recv:
    """Return what the sender's other devices see: the peer as channel, and no red dot."""
    from_uid = "" if m.from_uid == SYSTEM_UID else m.from_uid
    channel_id = shown_channel_id(m)
    if m.channel_type == _PERSON:
        first, _, second = channel_id.partition("@")
        channel_id = second if first == m.from_uid else first
    return _view(m, from_uid, channel_id, m.flags & _NO_RED_DOT)


def shown_channel_id(m: Message) -> str:
    """Return the channel id as clients know it: without the suffix of a command twin.

    An agent channel (`uid@agent`) is called by its second half, by both sides. The internal ids
    of sends to a list of uids (temp channels) are shown as they are.
    """
    channel_id = m.channel_id
    if m.channel_type != _TEMP and channel_id.endswith(CMD_SUFFIX):
        channel_id = channel_id[: -len(CMD_SUFFIX)]
    if m.channel_type == _AGENT:
        return channel_id.partition("@")[2] or channel_id
    return channel_id
