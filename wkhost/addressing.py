"""From the channel id on the wire to the stored (canonical) id. Pure.

Source: wire protocol, Channels and CMD.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import md5

from wkhost.types import CMD_SUFFIX, ONLINE_CMD_CHANNEL_ID, ChannelType, person_channel_id

_PERSON = int(ChannelType.PERSON)
_AGENT = int(ChannelType.AGENT)
_TEMP = int(ChannelType.TEMP)

_cached_person_id = lru_cache(maxsize=65_536)(person_channel_id)


def canonical_id(from_uid: str, channel_id: str, channel_type: int) -> str:
    """Return the stored id of the channel that `from_uid` calls `channel_id`.

    A person id that already holds "@" is normalised when the sender is one half of it.
    """
    if channel_type == _PERSON:
        if "@" in channel_id:
            return _from_full_id(from_uid, channel_id)
        return _cached_person_id(from_uid, channel_id)
    if channel_type == _AGENT and "@" not in channel_id:
        return f"{from_uid}@{channel_id}"
    return channel_id


def _from_full_id(from_uid: str, channel_id: str) -> str:
    first, _, second = channel_id.partition("@")
    if from_uid in (first, second):
        return person_channel_id(first, second)
    return person_channel_id(from_uid, channel_id)


def other_half(uid: str, canonical: str) -> str:
    """Return the peer of `uid` in a person or agent channel (`uid` itself in a self chat)."""
    first, _, second = canonical.partition("@")
    return second if first == uid else first


def halves(canonical: str) -> tuple[str, str]:
    """Return both uids of a person or agent channel."""
    first, _, second = canonical.partition("@")
    return first, second


def command_id(channel_id: str, channel_type: int) -> str:
    """Return the id of the stored twin that holds a channel's command messages."""
    if channel_type == _TEMP or channel_id == ONLINE_CMD_CHANNEL_ID:
        return channel_id
    return channel_id + CMD_SUFFIX


def original_id(channel_id: str) -> str:
    """Return the id whose record and lists hold for a channel or its command twin."""
    return channel_id.removesuffix(CMD_SUFFIX)


def subscribers_channel_id(uids: list[str]) -> str:
    """Return the id of the temp channel for a send to exactly these uids."""
    digest = md5("@".join(uids).encode(), usedforsecurity=False).hexdigest()
    return digest + CMD_SUFFIX


def visitor_of(channel_id: str, channel_type: int) -> str:
    """Return the visitor who belongs to a customer service or visitors channel, or ""."""
    if channel_type == ChannelType.CUSTOMER_SERVICE:
        return channel_id.partition("|")[0]
    if channel_type == ChannelType.VISITORS:
        return channel_id
    return ""
