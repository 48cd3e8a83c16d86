"""Who may speak where. Source: wire protocol, SEND pipeline; HTTP API, semantics.

First match wins:
  sender's send_ban 25 | channel ban 19, disband 24 (not types 3, 6, 10, 11) | free senders |
  person: receiver's deny list 4, allow list 13 (only when enforced) |
  others: deny list 4, not a subscriber 3, allow list in use and sender not on it 13.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol

from wkhost.addressing import halves, original_id, other_half
from wkhost.errors import ReasonCode
from wkhost.store.keys import MemberKind
from wkhost.types import SYSTEM_UID, ChannelInfo, ChannelType

_NO_RECORD_CHECK = frozenset(
    (
        ChannelType.CUSTOMER_SERVICE,
        ChannelType.INFO,
        ChannelType.VISITORS,
        ChannelType.AGENT,
    )
)
_DEFAULT_INFO = ChannelInfo()

SUCCESS = int(ReasonCode.SUCCESS)

RULES: dict[int, str] = {
    ReasonCode.SEND_BAN: "the sender may not send at all (send_ban)",
    ReasonCode.BAN: "the channel is banned",
    ReasonCode.DISBAND: "the channel is disbanded",
    ReasonCode.IN_BLACKLIST: "the sender is on the deny list of the channel or the receiver",
    ReasonCode.SUBSCRIBER_NOT_EXIST: "the sender is not a subscriber of the channel",
    ReasonCode.NOT_IN_WHITELIST: "an allow list is in use, and the sender is not on it",
    ReasonCode.SYSTEM_ERROR: "the store could not be read",
}
"""What a refusal says to the operator."""


class AclReader(Protocol):
    """The store's reads that permissions need."""

    def channel_info(self, channel_id: str, channel_type: int) -> ChannelInfo | None: ...

    def has_member(
        self, kind: MemberKind, channel_id: str, channel_type: int, uid: str
    ) -> bool: ...

    def any_member(self, kind: MemberKind, channel_id: str, channel_type: int) -> bool: ...


class Permissions:
    """Answers from the store, and from what plugins overrode."""

    def __init__(
        self,
        store: AclReader,
        system_uids: Set[str],
        *,
        whitelist_off_of_person: bool,
    ) -> None:
        self._store = store
        self._system_uids = system_uids
        self._whitelist_off_of_person = whitelist_off_of_person

    def channel_info(self, channel_id: str, channel_type: int) -> ChannelInfo:
        """Return the kernel's own record; an unknown channel has all flags off."""
        return self._store.channel_info(original_id(channel_id), channel_type) or _DEFAULT_INFO

    def send_banned(self, uid: str) -> bool:
        """Whether the user's own record (person channel of the uid) forbids every send."""
        return self.channel_info(uid, ChannelType.PERSON).send_ban

    def login_banned(self, uid: str) -> bool:
        return self.channel_info(uid, ChannelType.PERSON).ban

    def reason(
        self,
        sender: str,
        channel_id: str,
        channel_type: int,
        *,
        trusted: bool,
        info: ChannelInfo | None = None,
        send_banned: bool | None = None,
    ) -> int:
        """Return 1, or the reason code that forbids the send.

        `channel_id` is the canonical id. `trusted` senders (HTTP, plugins) skip the checks of the
        sender. `info` and `send_banned` override what the store says.

        Raises: StoreError.
        """
        channel_id = original_id(channel_id)
        if not trusted:
            if send_banned is None:
                send_banned = self.send_banned(sender)
            if send_banned:
                return int(ReasonCode.SEND_BAN)
        if channel_type not in _NO_RECORD_CHECK:
            if info is None:
                info = self.channel_info(channel_id, channel_type)
            if info.ban:
                return int(ReasonCode.BAN)
            if info.disband:
                return int(ReasonCode.DISBAND)
        if trusted or sender == SYSTEM_UID or sender in self._system_uids:
            return SUCCESS
        if channel_type == ChannelType.PERSON:
            return self._person(sender, channel_id, channel_type)
        if _is_free(sender, channel_id, channel_type):
            return SUCCESS
        return self._member(sender, channel_id, channel_type)

    def _person(self, sender: str, channel_id: str, channel_type: int) -> int:
        receiver = other_half(sender, channel_id)
        if receiver == SYSTEM_UID or receiver in self._system_uids:
            return SUCCESS
        listed = self._store.has_member
        if listed(MemberKind.DENYLIST, receiver, channel_type, sender):
            return int(ReasonCode.IN_BLACKLIST)
        if not self._whitelist_off_of_person and not listed(
            MemberKind.ALLOWLIST, receiver, channel_type, sender
        ):
            return int(ReasonCode.NOT_IN_WHITELIST)
        return SUCCESS

    def _member(self, sender: str, channel_id: str, channel_type: int) -> int:
        listed = self._store.has_member
        if listed(MemberKind.DENYLIST, channel_id, channel_type, sender):
            return int(ReasonCode.IN_BLACKLIST)
        if not listed(MemberKind.SUBSCRIBER, channel_id, channel_type, sender):
            return int(ReasonCode.SUBSCRIBER_NOT_EXIST)
        if self._store.any_member(MemberKind.ALLOWLIST, channel_id, channel_type) and not listed(
            MemberKind.ALLOWLIST, channel_id, channel_type, sender
        ):
            return int(ReasonCode.NOT_IN_WHITELIST)
        return SUCCESS


def _is_free(sender: str, channel_id: str, channel_type: int) -> bool:
    """Whether no list holds for this sender in a channel of this type."""
    if channel_type in (ChannelType.CUSTOMER_SERVICE, ChannelType.INFO):
        return True
    if channel_type == ChannelType.AGENT:
        return sender in halves(channel_id)
    return channel_type == ChannelType.VISITORS and sender == channel_id
