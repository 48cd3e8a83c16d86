"""Base64 payloads against the reference's rules, written down here once more and differently."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.api.base64_text import IllegalBase64Error, decode_base64, illegal_byte

_WHOLE = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 300), st.sampled_from("\r\n"))))
def test_line_breaks_anywhere_are_skipped(data: bytes, breaks: list[tuple[int, str]]) -> None:
    text = base64.b64encode(data).decode()
    for position, character in breaks:
        position %= len(text) + 1
        text = text[:position] + character + text[position:]
    assert decode_base64(text) == data


@given(st.text(alphabet="AQgw+/=\r\n-_é ", max_size=12))
def test_exactly_padded_standard_text_is_taken(text: str) -> None:
    bare = text.replace("\r", "").replace("\n", "")
    if _WHOLE.fullmatch(bare):
        assert decode_base64(text) == base64.b64decode(bare)
    else:
        with pytest.raises(IllegalBase64Error, match="illegal base64 data at input byte"):
            decode_base64(text)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b"!!", 0),
        (b"AAAA=", 4),
        (b"aGk", 0),
        (b"AAAAaGk", 4),
        (b"aG!k", 2),
        (b"=", 0),
        (b"a===", 1),
        (b"aG=k", 2),
        (b"aG=", 3),
        (b"aGk=x", 4),
        (b"aGk=", None),
        (b"", None),
    ],
)
def test_the_first_illegal_byte_is_named(text: bytes, position: int | None) -> None:
    assert illegal_byte(text) == position
