"""Checks that several routes share. Texts are those that back ends match, byte for byte."""

from __future__ import annotations

import re

from wkhost.api.answers import MESSAGE_TOO_LARGE, ApiError
from wkhost.types import ChannelType

MAX_PAYLOAD_BYTES = 32767
"""Longest payload of a message; clients read its length as a signed 16-bit number."""

_SPECIAL = re.compile("[@#&]")


def has_special(text: str) -> bool:
    """True for `@`, `#` or `&`, which uids and channel ids may not have."""
    return _SPECIAL.search(text) is not None


def refuse_if(wrong: bool, msg: str, code: int | None = None) -> None:
    """Raise the ApiError `msg` when `wrong`."""
    if wrong:
        raise ApiError(msg) if code is None else ApiError(msg, code)


def check_channel_id(channel_id: str) -> None:
    refuse_if(not channel_id.strip(), "频道ID不能为空！")


def check_plain_channel_id(channel_id: str) -> None:
    refuse_if(has_special(channel_id), "频道ID不能包含特殊字符！")


def check_not_person(channel_type: int) -> None:
    refuse_if(channel_type == ChannelType.PERSON, "个人频道不支持添加订阅者！")


def check_payload(payload: bytes) -> None:
    refuse_if(not payload, "payload不能为空！")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ApiError(f"payload不能超过{MAX_PAYLOAD_BYTES}字节！", MESSAGE_TOO_LARGE)
