"""Wire channel ids to stored ids, and back to whose lists hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost import addressing
from wkhost.types import ONLINE_CMD_CHANNEL_ID, ChannelType, person_channel_id

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "vectors.json").read_text())
PLAIN_TYPES = [t for t in range(256) if t not in (ChannelType.PERSON, ChannelType.AGENT)]
# Two strings with one CRC-32, found by search.
TIE = ("plumless", "buckeroo")
UID = st.text(st.characters(exclude_characters="@#&", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize("vector", VECTORS["person_channel"], ids=lambda v: f"{v['a']}-{v['b']}")
def test_person_ids_equal_the_recorded_ones(vector: dict[str, Any]) -> None:
    a, b = vector["a"], vector["b"]
    assert crc32(a.encode()) == vector["crc32_a"]
    assert addressing.canonical_id(a, b, ChannelType.PERSON) == vector["channel_id"]
    assert addressing.canonical_id(b, a, ChannelType.PERSON) == vector["channel_id"]


@given(UID, UID)
def test_both_sides_of_a_person_chat_name_one_channel(a: str, b: str) -> None:
    stored = addressing.canonical_id(a, b, ChannelType.PERSON)
    assert stored == addressing.canonical_id(b, a, ChannelType.PERSON)
    assert sorted(addressing.halves(stored)) == sorted((a, b))
    assert addressing.other_half(a, stored) == b
    assert addressing.other_half(b, stored) == a


def test_equal_hashes_put_the_greater_string_first() -> None:
    a, b = TIE
    assert crc32(a.encode()) == crc32(b.encode()), "the pair must collide for this to test it"
    assert person_channel_id(a, b) == person_channel_id(b, a) == "plumless@buckeroo"


@pytest.mark.parametrize("full", ["u1@u2", "u2@u1"])
@pytest.mark.parametrize("sender", ["u1", "u2"])
def test_a_full_person_id_is_normalised_when_the_sender_is_one_half(full: str, sender: str) -> None:
    assert addressing.canonical_id(sender, full, ChannelType.PERSON) == "u2@u1"


def test_a_full_person_id_of_others_is_taken_as_a_uid() -> None:
    stored = addressing.canonical_id("u3", "u1@u2", ChannelType.PERSON)
    assert stored in ("u3@u1@u2", "u1@u2@u3")
    assert stored != "u2@u1", "a stranger must not reach the chat of two others"


def test_a_chat_with_oneself_has_the_uid_twice() -> None:
    assert addressing.canonical_id("a", "a", ChannelType.PERSON) == "a@a"
    assert addressing.other_half("a", "a@a") == "a"


def test_agent_ids_are_sender_first_and_full_ids_stay() -> None:
    assert addressing.canonical_id("u", "bot", ChannelType.AGENT) == "u@bot"
    assert addressing.canonical_id("bot", "u", ChannelType.AGENT) == "bot@u"
    assert addressing.canonical_id("bot", "u@bot", ChannelType.AGENT) == "u@bot"


@pytest.mark.parametrize("channel_type", PLAIN_TYPES)
def test_ids_of_all_other_types_stay_as_they_are(channel_type: int) -> None:
    for channel_id in ("g", "parent@topic", "v|x", ""):
        assert addressing.canonical_id("u", channel_id, channel_type) == channel_id


def test_command_twins_lead_back_to_their_original() -> None:
    for channel_type in (1, 2, 3, 10, 11, 12, 255):
        twin = addressing.command_id("u2@u1", channel_type)
        assert twin == "u2@u1____cmd"
        assert addressing.original_id(twin) == "u2@u1"
    assert addressing.original_id("g") == "g"


def test_temp_and_online_command_channels_have_no_twin() -> None:
    assert addressing.command_id("abc", ChannelType.TEMP) == "abc"
    assert addressing.command_id(ONLINE_CMD_CHANNEL_ID, 2) == ONLINE_CMD_CHANNEL_ID


def test_a_list_of_uids_names_one_channel_by_its_order() -> None:
    first = addressing.subscribers_channel_id(["a", "b"])
    assert first == addressing.subscribers_channel_id(["a", "b"])
    assert first != addressing.subscribers_channel_id(["b", "a"])
    assert first.endswith("____cmd")


def test_visitors_belong_to_channels_of_types_3_and_10_only() -> None:
    assert addressing.visitor_of("v1|agent", 3) == "v1"
    assert addressing.visitor_of("v1", 10) == "v1"
    for channel_type in (0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 255):
        assert addressing.visitor_of("v1|agent", channel_type) == ""
