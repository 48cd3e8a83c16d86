"""Every rule of the permission table, for every kind of channel."""

from __future__ import annotations

import pytest

from wkhost.errors import ReasonCode, StoreError
from wkhost.kernel.permission import Permissions
from wkhost.store.keys import MemberKind
from wkhost.types import SYSTEM_UID, ChannelInfo

OK = ReasonCode.SUCCESS
DENY, ALLOW, SUBSCRIBER = MemberKind.DENYLIST, MemberKind.ALLOWLIST, MemberKind.SUBSCRIBER
LISTED_TYPES = (0, 2, 4, 5, 7, 8, 9, 12, 13, 255)
"""Types under the generic rules."""
UNCHECKED_TYPES = (3, 6, 10, 11)
"""Types whose record (ban, disband) is not looked at."""


class Lists:
    """Implements `AclReader` in sets."""

    def __init__(self) -> None:
        self.infos: dict[tuple[str, int], ChannelInfo] = {}
        self.members: set[tuple[MemberKind, str, int, str]] = set()
        self.broken = False

    def channel_info(self, channel_id: str, channel_type: int) -> ChannelInfo | None:
        if self.broken:
            raise StoreError("broken")
        return self.infos.get((channel_id, channel_type))

    def has_member(self, kind: MemberKind, channel_id: str, channel_type: int, uid: str) -> bool:
        return (kind, channel_id, channel_type, uid) in self.members

    def any_member(self, kind: MemberKind, channel_id: str, channel_type: int) -> bool:
        return any(row[:3] == (kind, channel_id, channel_type) for row in self.members)


class Desk:
    """Permissions over `Lists`, asked for sender "a" unless said otherwise."""

    def __init__(self, *, whitelist_off_of_person: bool = True) -> None:
        self.lists = Lists()
        self.system: set[str] = set()
        self.permissions = Permissions(
            self.lists, self.system, whitelist_off_of_person=whitelist_off_of_person
        )

    def list(self, kind: MemberKind, channel_id: str, channel_type: int, uid: str = "a") -> None:
        self.lists.members.add((kind, channel_id, channel_type, uid))

    def unlist(self, kind: MemberKind, channel_id: str, channel_type: int, uid: str) -> None:
        self.lists.members.remove((kind, channel_id, channel_type, uid))

    def reason(
        self, channel_id: str, channel_type: int, sender: str = "a", *, trusted: bool = False
    ) -> int:
        return self.permissions.reason(sender, channel_id, channel_type, trusted=trusted)


@pytest.mark.parametrize("channel_type", LISTED_TYPES)
def test_only_subscribers_speak_and_an_unknown_channel_has_none(channel_type: int) -> None:
    desk = Desk()
    assert desk.reason("g", channel_type) == ReasonCode.SUBSCRIBER_NOT_EXIST
    desk.list(SUBSCRIBER, "g", channel_type)
    assert desk.reason("g", channel_type) == OK
    assert desk.reason("g", channel_type, "b") == ReasonCode.SUBSCRIBER_NOT_EXIST


@pytest.mark.parametrize("channel_type", LISTED_TYPES)
def test_the_deny_list_comes_before_membership(channel_type: int) -> None:
    desk = Desk()
    desk.list(DENY, "g", channel_type)
    assert desk.reason("g", channel_type) == ReasonCode.IN_BLACKLIST
    desk.list(SUBSCRIBER, "g", channel_type)
    assert desk.reason("g", channel_type) == ReasonCode.IN_BLACKLIST


@pytest.mark.parametrize("channel_type", LISTED_TYPES)
def test_an_allow_list_shuts_others_out_until_its_last_entry_goes(channel_type: int) -> None:
    desk = Desk()
    desk.list(SUBSCRIBER, "g", channel_type)
    desk.list(ALLOW, "g", channel_type, "b")
    assert desk.reason("g", channel_type) == ReasonCode.NOT_IN_WHITELIST
    desk.list(ALLOW, "g", channel_type)
    assert desk.reason("g", channel_type) == OK
    desk.unlist(ALLOW, "g", channel_type, "a")
    desk.unlist(ALLOW, "g", channel_type, "b")
    assert desk.reason("g", channel_type) == OK, "an empty allow list is none"


@pytest.mark.parametrize("channel_type", [*LISTED_TYPES, 1])
def test_ban_then_disband_hold_for_everybody(channel_type: int) -> None:
    desk = Desk()
    channel_id = "b@a" if channel_type == 1 else "g"
    desk.list(SUBSCRIBER, channel_id, channel_type)
    desk.system.add("bot")
    for info, reason in (
        (ChannelInfo(ban=True, disband=True), ReasonCode.BAN),
        (ChannelInfo(disband=True), ReasonCode.DISBAND),
    ):
        desk.lists.infos[channel_id, channel_type] = info
        assert desk.reason(channel_id, channel_type) == reason
        assert desk.reason(channel_id, channel_type, "bot") == reason
        assert desk.reason(channel_id, channel_type, SYSTEM_UID) == reason
        assert desk.reason(channel_id, channel_type, trusted=True) == reason
        assert desk.reason(channel_id + "____cmd", channel_type) == reason


@pytest.mark.parametrize("channel_type", UNCHECKED_TYPES)
def test_ban_and_disband_are_not_looked_at_in_types_3_6_10_11(channel_type: int) -> None:
    desk = Desk()
    channel_id = "a@b" if channel_type == 11 else "a"
    desk.lists.infos[channel_id, channel_type] = ChannelInfo(ban=True, disband=True)
    assert desk.reason(channel_id, channel_type) == OK


@pytest.mark.parametrize("channel_type", [3, 6])
def test_anyone_may_speak_in_customer_service_and_info_channels(channel_type: int) -> None:
    desk = Desk()
    desk.list(DENY, "x", channel_type)
    desk.list(ALLOW, "x", channel_type, "b")
    assert desk.reason("x", channel_type) == OK


def test_a_visitor_may_always_speak_and_others_by_the_generic_rules() -> None:
    desk = Desk()
    desk.list(DENY, "visitor", 10, "visitor")
    assert desk.reason("visitor", 10, "visitor") == OK
    assert desk.reason("visitor____cmd", 10, "visitor") == OK
    assert desk.reason("visitor", 10) == ReasonCode.SUBSCRIBER_NOT_EXIST
    desk.list(SUBSCRIBER, "visitor", 10)
    assert desk.reason("visitor", 10) == OK
    desk.list(DENY, "visitor", 10)
    assert desk.reason("visitor", 10) == ReasonCode.IN_BLACKLIST


@pytest.mark.parametrize("channel_id", ["a@bot", "bot@a", "a@bot____cmd"])
def test_both_halves_of_an_agent_channel_may_speak_and_nobody_else(channel_id: str) -> None:
    desk = Desk()
    assert desk.reason(channel_id, 11) == OK
    assert desk.reason(channel_id, 11, "bot") == OK
    assert desk.reason(channel_id, 11, "c") == ReasonCode.SUBSCRIBER_NOT_EXIST


@pytest.mark.parametrize("channel_id", ["b@a", "a@b", "b@a____cmd"])
def test_a_person_chat_is_open_but_for_the_receivers_deny_list(channel_id: str) -> None:
    desk = Desk()
    assert desk.reason(channel_id, 1) == OK
    desk.list(DENY, "a", 1, "b")
    assert desk.reason(channel_id, 1) == OK, "the sender's own deny list does not hold"
    desk.list(DENY, "b", 1)
    assert desk.reason(channel_id, 1) == ReasonCode.IN_BLACKLIST


def test_the_allow_list_of_persons_holds_only_when_it_is_switched_on() -> None:
    desk = Desk(whitelist_off_of_person=False)
    assert desk.reason("b@a", 1) == ReasonCode.NOT_IN_WHITELIST
    desk.list(ALLOW, "b", 1)
    assert desk.reason("b@a", 1) == OK
    desk.list(DENY, "b", 1)
    assert desk.reason("b@a", 1) == ReasonCode.IN_BLACKLIST
    open_desk = Desk()
    open_desk.list(ALLOW, "b", 1, "c")
    assert open_desk.reason("b@a", 1) == OK


@pytest.mark.parametrize("receiver", [SYSTEM_UID, "bot"])
def test_everybody_may_write_to_a_system_account(receiver: str) -> None:
    desk = Desk(whitelist_off_of_person=False)
    desk.system.add("bot")
    desk.list(DENY, receiver, 1)
    assert desk.reason(f"{receiver}@a", 1) == OK
    assert desk.reason(f"a@{receiver}", 1) == OK


@pytest.mark.parametrize("sender", [SYSTEM_UID, "bot"])
@pytest.mark.parametrize("channel_type", range(14))
def test_system_accounts_may_speak_anywhere(sender: str, channel_type: int) -> None:
    desk = Desk(whitelist_off_of_person=False)
    desk.system.add("bot")
    channel_id = f"b@{sender}" if channel_type in (1, 11) else "g"
    desk.list(DENY, channel_id, channel_type, sender)
    desk.list(DENY, "b", 1, sender)
    assert desk.reason(channel_id, channel_type, sender) == OK


@pytest.mark.parametrize("channel_type", [*range(14), 255])
def test_send_ban_of_the_sender_comes_first(channel_type: int) -> None:
    desk = Desk()
    desk.lists.infos["a", 1] = ChannelInfo(send_ban=True)
    desk.lists.infos["g", channel_type] = ChannelInfo(ban=True)
    assert desk.reason("g", channel_type) == ReasonCode.SEND_BAN


@pytest.mark.parametrize("channel_type", [*range(14), 255])
def test_trusted_senders_skip_every_check_of_the_sender(channel_type: int) -> None:
    desk = Desk(whitelist_off_of_person=False)
    desk.lists.infos["a", 1] = ChannelInfo(send_ban=True)
    channel_id = "b@a" if channel_type == 1 else "g"
    desk.list(DENY, channel_id, channel_type)
    desk.list(DENY, "b", 1)
    assert desk.reason(channel_id, channel_type, trusted=True) == OK


def test_send_ban_on_a_group_and_the_manager_uid_mean_nothing() -> None:
    desk = Desk()
    desk.lists.infos["g", 2] = ChannelInfo(send_ban=True, large=True)
    desk.list(SUBSCRIBER, "g", 2)
    assert desk.reason("g", 2) == OK
    assert desk.reason("g", 2, "____manager") == ReasonCode.SUBSCRIBER_NOT_EXIST


def test_command_ids_are_held_to_the_lists_of_the_original() -> None:
    desk = Desk()
    desk.list(SUBSCRIBER, "g", 2)
    assert desk.reason("g____cmd", 2) == OK
    desk.list(ALLOW, "g", 2, "b")
    assert desk.reason("g____cmd", 2) == ReasonCode.NOT_IN_WHITELIST


def test_what_plugins_said_overrides_the_records() -> None:
    desk = Desk()
    desk.lists.infos["a", 1] = ChannelInfo(send_ban=True)
    desk.lists.infos["g", 2] = ChannelInfo(ban=True)
    desk.list(SUBSCRIBER, "g", 2)
    reason = desk.permissions.reason(
        "a", "g", 2, trusted=False, info=ChannelInfo(), send_banned=False
    )
    assert reason == OK


def test_a_store_error_is_passed_on_and_never_a_permission() -> None:
    desk = Desk()
    desk.lists.broken = True
    with pytest.raises(StoreError):
        desk.reason("g", 2)
