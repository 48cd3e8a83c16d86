"""/channel/…: records, members, blacklists and whitelists."""

from __future__ import annotations

from wkhost.api.answers import CHANNEL_NOT_FOUND, OK, Answer
from wkhost.api.checks import (
    check_channel_id,
    check_not_person,
    check_plain_channel_id,
    refuse_if,
)
from wkhost.api.kernel import Kernel
from wkhost.api.schema import Channel, ChannelInfo, ChannelUids, SubscriberAdd, SubscriberRemove
from wkhost.link.contract import (
    AddSubscribers,
    AddToAllowlist,
    AddToDenylist,
    Done,
    RemoveSubscribers,
    SetChannel,
    Subscriber,
)
from wkhost.types import ChannelType


async def create(kernel: Kernel, body: Channel) -> Answer:
    check_channel_id(body.channel_id)
    refuse_if(body.channel_type == 0, "频道类型错误！")
    check_plain_channel_id(body.channel_id)
    refuse_if(
        body.channel_type == ChannelType.PERSON and bool(body.subscribers),
        "不支持个人频道添加订阅者！",
    )
    request = _record(body)
    request.reset = body.reset
    request.subscribers = _named(body.subscribers)
    await kernel.ask(request, Done)
    return OK


async def info(kernel: Kernel, body: ChannelInfo) -> Answer:
    check_channel_id(body.channel_id)
    await kernel.ask(_record(body), Done)
    return OK


async def subscriber_add(kernel: Kernel, body: SubscriberAdd) -> Answer:
    check_channel_id(body.channel_id)
    check_plain_channel_id(body.channel_id)
    members = _named(body.subscribers)
    refuse_if(not any(member.uid.strip() for member in members), "订阅者不能为空！")
    check_not_person(body.channel_type)
    refuse_if(body.temp_subscriber, "新版本临时订阅者已不支持！")
    channel_type = body.channel_type or ChannelType.GROUP
    request = AddSubscribers(body.channel_id, int(channel_type), members, body.reset)
    await kernel.ask(request, Done)
    return OK


async def subscriber_remove(kernel: Kernel, body: SubscriberRemove) -> Answer:
    check_channel_id(body.channel_id)
    check_plain_channel_id(body.channel_id)
    uids = [member.uid for member in body.subscribers]
    refuse_if(not uids or "" in uids, "订阅者不能为空！")
    check_not_person(body.channel_type)
    channel_type = body.channel_type or ChannelType.GROUP
    await kernel.ask(RemoveSubscribers(body.channel_id, int(channel_type), uids), Done)
    return OK


async def blacklist_add(kernel: Kernel, body: ChannelUids) -> Answer:
    _check_named_channel(body)
    refuse_if(body.channel_type == 0, "频道类型不能为0！")
    refuse_if(not body.uids or "" in body.uids, "uids不能为空！")
    await kernel.ask(AddToDenylist(body.channel_id, body.channel_type, body.uids), Done)
    return OK


async def whitelist_add(kernel: Kernel, body: ChannelUids) -> Answer:
    _check_named_channel(body)
    check_plain_channel_id(body.channel_id)
    refuse_if(body.channel_type == 0, "频道类型不能为0！")
    uids = [uid for uid in body.uids if uid]
    refuse_if(not any(uid.strip() for uid in uids), "uids不能为空！")
    await kernel.ask(AddToAllowlist(body.channel_id, body.channel_type, uids), Done)
    return OK


def _check_named_channel(body: ChannelUids) -> None:
    refuse_if(not body.channel_id.strip(), "channel_id不能为空！", CHANNEL_NOT_FOUND)


def _record(body: ChannelInfo) -> SetChannel:
    return SetChannel(
        body.channel_id,
        body.channel_type,
        large=body.large,
        ban=body.ban,
        disband=body.disband,
        send_ban=body.send_ban,
        allow_stranger=body.allow_stranger,
    )


def _named(members: list[Subscriber]) -> list[Subscriber]:
    """Drop members with an empty uid, which nobody can be."""
    return [member for member in members if member.uid]
