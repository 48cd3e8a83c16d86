"""Verdicts check themselves in the author's own stack; messages read from the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import Message, Refuse, Replace, Veto, WebhookAnswer
from plugin_sdk.fake_host import make_message


@pytest.mark.parametrize("code", [0, 1, 256, -1])
def test_a_refusal_never_carries_success_or_a_code_out_of_range(code: int) -> None:
    with pytest.raises(ValueError, match="Refuse: code: expected 2 to 255"):
        Refuse(code)


@pytest.mark.parametrize("code", [True, "11", None, 2.0])
def test_a_refusal_needs_an_integer_code(code: Any) -> None:
    with pytest.raises(TypeError, match="Refuse: code: expected an integer"):
        Refuse(code)


@given(st.text(max_size=300))
def test_a_text_is_taken_exactly_when_it_may_travel(text: str) -> None:
    controls = any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text)
    fits = not controls and len(text.encode()) <= 256
    if fits:
        assert Refuse(11, text).text == text
    else:
        with pytest.raises(ValueError, match="Refuse: text: expected"):
            Refuse(11, text)


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        Refuse(11, "\ud800")


def test_a_veto_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="expected a reason"):
        Veto("")


def test_replace_takes_bytes_or_makes_json() -> None:
    wrong: Any = "text"
    with pytest.raises(TypeError, match="Replace: payload: expected bytes, got str"):
        Replace(wrong)
    assert Replace.json({"a": "ü"}) == Replace('{"a":"ü"}'.encode())
    assert WebhookAnswer.change([1]).data_json == b"[1]"


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'{"type":1,"content":"hi"}', "hi"),
        (b'{"type":2,"content":"hi"}', ""),
        (b'{"type":1,"content":5}', ""),
        (b"[1]", ""),
        (b"{broken", ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_text_is_the_content_of_text_messages_only(payload: bytes, text: str) -> None:
    assert make_message(payload=payload).text == text


def test_a_message_is_read_only_and_cannot_be_made_by_hand() -> None:
    message = make_message(payload=b'{"a":[1]}', from_uid="u1", message_id=2**64 - 1)
    assert (message.message_id, message.from_uid, message.json()) == (2**64 - 1, "u1", {"a": [1]})
    assert message.origin.door == ""
    with pytest.raises(AttributeError):
        setattr(message, "payload", b"")  # noqa: B010 - what a type checker would not allow
    with pytest.raises(TypeError, match="messages come from the host"):
        Message()
