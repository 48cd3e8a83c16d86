"""Changes to users, channels and their lists: durable first, then every cache is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import trio

from wkhost.delivery.members import MemberLists
from wkhost.kernel.channels import ChannelTable
from wkhost.kernel.connect import Logins
from wkhost.kernel.permission import Permissions
from wkhost.kernel.sequence import Committer
from wkhost.link.contract import (
    AddSubscribers,
    AddSystemUids,
    AddToAllowlist,
    AddToDenylist,
    RemoveSubscribers,
    SetChannel,
    SetUserToken,
    Subscriber,
    UserStatus,
)
from wkhost.store import mutations
from wkhost.store.engine import Row
from wkhost.store.keys import MemberKind
from wkhost.store.store import Store
from wkhost.types import ChannelInfo, ChannelType, DeviceLevel, DeviceRecord

STATUS_OK = 200
STATUS_BAN = 19
STATUS_DISBAND = 24
NEW_TOKEN_KICK_TEXT = "账号在其他设备上登录"
NEW_TOKEN_CLOSE_S = 10.0


class Directory:
    """What the business API changes. Every method returns when the change is durable.

    Raises (all methods): StoreError; then the change may or may not have happened.
    """

    def __init__(
        self,
        *,
        store: Store,
        committer: Committer,
        channels: ChannelTable,
        members: MemberLists,
        permissions: Permissions,
        logins: Logins,
        system_uids: set[str],
    ) -> None:
        self._store = store
        self._committer = committer
        self._channels = channels
        self._members = members
        self._permissions = permissions
        self._logins = logins
        self._system_uids = system_uids

    async def load(self) -> None:
        """Read the system accounts into memory; call once at start."""
        after = ""
        while page := self._store.list_system_uids(after):
            self._system_uids.update(page)
            after = page[-1]
            await trio.lowlevel.checkpoint()

    async def set_user_token(self, request: SetUserToken) -> UserStatus:
        """Store a device's token; a new master logs the flag's other connections out."""
        info = self._permissions.channel_info(request.uid, ChannelType.PERSON)
        if info.ban:
            return UserStatus(STATUS_BAN)
        if info.disband:
            return UserStatus(STATUS_DISBAND)
        record = DeviceRecord(request.token, request.device_level)
        await self._committer.commit_rows(
            mutations.put_device(request.uid, request.device_flag, record)
        )
        if request.device_level == DeviceLevel.MASTER:
            self._logins.kick(
                request.uid, request.device_flag, NEW_TOKEN_KICK_TEXT, NEW_TOKEN_CLOSE_S
            )
        return UserStatus(STATUS_OK)

    async def add_system_uids(self, request: AddSystemUids) -> None:
        await self._committer.commit_rows(mutations.put_system_uids(request.uids))
        self._system_uids.update(request.uids)
        self._channels.permissions_changed()

    async def set_channel(self, request: SetChannel) -> None:
        info = ChannelInfo(
            request.large,
            request.ban,
            request.disband,
            request.send_ban,
            request.allow_stranger,
        )
        channel = (request.channel_id, request.channel_type)
        rows = mutations.put_channel(*channel, info)
        if request.reset:
            rows += mutations.clear_members(MemberKind.SUBSCRIBER, *channel)
        rows += _subscriber_rows(*channel, request.subscribers)
        await self._change(channel, rows)

    async def add_subscribers(self, request: AddSubscribers) -> None:
        channel = (request.channel_id, request.channel_type)
        rows: list[Row] = []
        if self._store.channel_info(*channel) is None:
            rows += mutations.put_channel(*channel, ChannelInfo())
        if request.reset:
            rows += mutations.clear_members(MemberKind.SUBSCRIBER, *channel)
        rows += _subscriber_rows(*channel, request.subscribers)
        await self._change(channel, rows)

    async def remove_subscribers(self, request: RemoveSubscribers) -> None:
        channel = (request.channel_id, request.channel_type)
        rows = mutations.delete_members(MemberKind.SUBSCRIBER, *channel, request.uids)
        await self._change(channel, rows)

    async def add_to_denylist(self, request: AddToDenylist) -> None:
        channel = (request.channel_id, request.channel_type)
        await self._change(
            channel, mutations.put_members(MemberKind.DENYLIST, *channel, request.uids)
        )

    async def add_to_allowlist(self, request: AddToAllowlist) -> None:
        channel = (request.channel_id, request.channel_type)
        await self._change(
            channel, mutations.put_members(MemberKind.ALLOWLIST, *channel, request.uids)
        )

    async def _change(self, channel: tuple[str, int], rows: Sequence[Row]) -> None:
        try:
            await self._committer.commit_rows(rows)
        finally:
            # Also after an error: the rows may have been written.
            self._members.changed(*channel)
            self._channels.permissions_changed()


def _subscriber_rows(
    channel_id: str, channel_type: int, subscribers: Sequence[Subscriber]
) -> list[Row]:
    rows: list[Row] = []
    for role, members in groupby(subscribers, key=lambda subscriber: subscriber.role):
        rows += mutations.put_members(
            MemberKind.SUBSCRIBER,
            channel_id,
            channel_type,
            [subscriber.uid for subscriber in members],
            role,
        )
    return rows
