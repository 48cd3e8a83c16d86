"""Lineage tokens: bound to plugin, process and time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host.lineage import MESSAGE_TOKEN_S, Cause, Lineage


def test_a_token_says_its_cause_to_its_plugin_only() -> None:
    lineage = Lineage(lambda: 0.0)
    token = lineage.for_call("a", 17, 3)
    assert lineage.verify("a", token) == Cause(call_id=17, hop=3)
    assert lineage.verify("b", token) is None
    assert Lineage(lambda: 0.0).verify("a", token) is None


def test_a_message_token_ends_with_time() -> None:
    now = [0.0]
    lineage = Lineage(lambda: now[0])
    token = lineage.for_message("a", 2**62, 1)
    assert lineage.verify("a", token) == Cause(call_id=0, hop=1)
    now[0] = MESSAGE_TOKEN_S + 1
    assert lineage.verify("a", token) is None


@given(st.binary(max_size=40), st.integers(0, 29), st.integers(1, 255))
def test_forged_and_changed_tokens_are_refused(garbage: bytes, at: int, flip: int) -> None:
    lineage = Lineage(lambda: 0.0)
    assert lineage.verify("a", garbage) is None
    token = bytearray(lineage.for_call("a", 1, 0))
    token[at] ^= flip
    assert lineage.verify("a", bytes(token)) is None
