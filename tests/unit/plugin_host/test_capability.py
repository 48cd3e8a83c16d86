"""What a manifest asks for, in words and names; and that nothing holds which was not granted."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host.capability import (
    asked,
    find,
    is_denied,
    largest,
    missing,
    names,
    narrow,
)
from wkhost.plugin_host.manifest import Capabilities, Limits, Manifest, parse_manifest

MANIFEST = """
[plugin]
no = "all"
version = "1.0.0"
[run]
main = "main.py"
[hooks.send]
payload = true
[hooks.user_get]
[hooks.receive]
bound = ["bot_*"]
[capabilities]
send_as = ["bot_*", "*"]
send_rate = 500
messages_read = ["2:team-*"]
channels_read = true
users_read = true
kv_bytes = 4096
token = true
egress = ["api.example.com:443", "*.example.org:443"]
[limits]
memory_mb = 1024
calls_per_s = 1000
[sandbox]
subprocesses = true
[schema.api_key]
type = "text"
secret = true
"""
FULL = parse_manifest(MANIFEST.encode())
NAMES = (
    *("hook.send", "hook.send.payload", "hook.user_get", "hook.receive"),
    *("send_as:bot_*", "send_as:*", "send_rate=500", "messages_read:2:team-*"),
    *("channels_read", "users_read", "kv_bytes=4096", "token"),
    *("egress:api.example.com:443", "egress:*.example.org:443"),
    *("secret:api_key", "subprocesses", "limit.memory_mb=1024"),
    "limit.calls_per_s=1000",
)
DANGEROUS = {
    *("hook.user_get", "send_as:*", "send_rate=500", "token", "subprocesses"),
    *("egress:api.example.com:443", "egress:*.example.org:443"),
}


def test_everything_that_is_asked_for_has_a_name_and_words() -> None:
    assert names(asked(FULL)) == NAMES
    assert {each.name for each in asked(FULL) if each.dangerous} == DANGEROUS
    texts = {each.name: each.text for each in asked(FULL)}
    assert texts["limit.calls_per_s=1000"] == "call the server up to 1000 times a second"
    assert texts["send_as:*"] == "send messages as any user"
    assert "carry message content out" in texts["egress:api.example.com:443"]


def test_all_that_is_granted_holds_and_nothing_more() -> None:
    assert narrow(FULL, NAMES) == FULL
    nothing = narrow(FULL, ())
    assert nothing.hooks == {}
    assert nothing.withheld == ("send", "user_get", "receive")
    assert nothing.capabilities == Capabilities(send_rate=0)
    assert nothing.limits == Limits()
    assert not nothing.sandbox.subprocesses
    assert nothing.schema == {}
    assert asked(nothing) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_one_can_be_taken_away_alone(name: str) -> None:
    for narrowed in (
        narrow(FULL, set(NAMES) - {name}),
        narrow(FULL, NAMES, (name,)),
        narrow(FULL, NAMES, (name.partition("=")[0],)),
    ):
        left = set(names(asked(narrowed)))
        gone = set(NAMES) - left
        expected = {name}
        if name == "hook.send":
            expected.add("hook.send.payload")
        assert {each for each in gone if each != "send_rate=500"} == expected - {"send_rate=500"}
        assert name not in left


def test_amounts_are_granted_up_to_what_was_agreed() -> None:
    granted = [*(set(NAMES) - {"kv_bytes=4096"}), "kv_bytes=1000", "kv_bytes=junk"]
    assert narrow(FULL, granted).capabilities.kv_bytes == 1000
    assert names(missing(FULL, granted)) == ("kv_bytes=4096",)
    assert missing(FULL, [*granted, "kv_bytes=9999"]) == []
    assert narrow(FULL, [*granted, "kv_bytes=9999"]).capabilities.kv_bytes == 4096
    assert largest("kv_bytes", granted) == 1000


def test_a_denial_settles_the_question_and_wins() -> None:
    assert missing(FULL, (), NAMES) == []
    assert is_denied("hook.send.payload", ("hook.send",))
    assert not is_denied("hook.send", ("hook.send.payload",))
    assert narrow(FULL, NAMES, ("token",)).capabilities.token is False
    assert find(FULL, "kv_bytes") == find(FULL, "kv_bytes=4096")
    assert find(FULL, "kv_bytes=1") is None


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_what_holds_is_what_was_asked_granted_and_not_denied(
    granted: set[str], denied: set[str]
) -> None:
    narrowed = narrow(FULL, granted, denied)
    left = set(names(asked(narrowed)))
    assert left <= granted - denied | {"send_rate=0"}
    assert narrow(narrowed, granted, denied).hooks == narrowed.hooks
    again: Manifest = msgspec.structs.replace(narrowed, withheld=())
    assert set(names(missing(again, granted, denied))) <= {"send_rate=0"}
