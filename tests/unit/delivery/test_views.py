"""What each recipient sees of a stored message."""

from __future__ import annotations

import pytest

from wkhost.delivery.views import shown_channel_id, view_for_others, view_for_sender
from wkhost.types import SYSTEM_UID, Flags, Message

RED = int(Flags.RED_DOT)
SYNC = int(Flags.SYNC_ONCE)


def message(channel_id: str, channel_type: int, from_uid: str = "a", flags: int = 0) -> Message:
    return Message(
        9, channel_id, channel_type, from_uid, "n", b"x", flags, 0x28, 60, "t", 1234, 5, 6
    )


def test_every_field_of_the_stored_message_is_passed_on() -> None:
    view = view_for_others(message("g", 2, flags=RED))
    assert (view.message_id, view.message_seq, view.timestamp) == (9, 5, 1234)
    assert (view.from_uid, view.channel_id, view.channel_type) == ("a", "g", 2)
    assert (view.client_msg_no, view.payload, view.topic) == ("n", b"x", "t")
    assert (view.flags, view.setting, view.expire) == (RED, 0x28, 60)


@pytest.mark.parametrize("stored", ["a@b", "b@a"])
def test_a_person_chat_is_called_by_its_peer(stored: str) -> None:
    assert view_for_others(message(stored, 1)).channel_id == "a"
    assert view_for_sender(message(stored, 1)).channel_id == "b"


def test_a_chat_with_oneself_is_called_by_the_own_uid() -> None:
    assert view_for_sender(message("a@a", 1)).channel_id == "a"


@pytest.mark.parametrize("flags", [RED, RED | SYNC, RED | SYNC | 1 | 8])
def test_the_red_dot_is_cleared_for_the_senders_own_devices_only(flags: int) -> None:
    assert view_for_others(message("b@a", 1, flags=flags)).flags == flags
    assert view_for_sender(message("b@a", 1, flags=flags)).flags == flags & ~RED


def test_the_system_sender_is_shown_as_nobody() -> None:
    person = view_for_others(message(f"{SYSTEM_UID}@b", 1, SYSTEM_UID))
    assert (person.from_uid, person.channel_id) == ("", "")
    group = view_for_others(message("g", 2, SYSTEM_UID))
    assert (group.from_uid, group.channel_id) == ("", "g")
    assert view_for_others(message("g", 2, "bot")).from_uid == "bot"


@pytest.mark.parametrize("channel_type", [2, 3, 6, 10, 12])
def test_command_twins_are_called_by_their_original(channel_type: int) -> None:
    assert shown_channel_id(message("g____cmd", channel_type)) == "g"


def test_commands_in_a_person_chat_are_called_by_the_peer() -> None:
    assert view_for_others(message("b@a____cmd", 1, flags=SYNC)).channel_id == "a"
    assert view_for_sender(message("b@a____cmd", 1, flags=SYNC)).channel_id == "b"
    assert view_for_sender(message("a@b____cmd", 1, flags=SYNC)).channel_id == "b"


def test_ids_of_temp_channels_are_shown_as_they_are() -> None:
    assert shown_channel_id(message("0123____cmd", 8)) == "0123____cmd"


def test_an_agent_channel_is_called_by_its_second_half_by_both_sides() -> None:
    asked = message("u@bot", 11, "u")
    assert view_for_others(asked).channel_id == view_for_sender(asked).channel_id == "bot"
    answered = message("bot@u", 11, "bot")
    assert view_for_others(answered).channel_id == "u", "the id is not rewritten"
