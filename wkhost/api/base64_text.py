"""Base64 as the API's clients know it: padded standard alphabet, line breaks skipped."""

from __future__ import annotations

from binascii import a2b_base64

_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_LINE_BREAKS = b"\r\n"
_PAD = ord("=")


class IllegalBase64Error(ValueError):
    """The text is not base64; the message names the first illegal byte."""


def decode_base64(text: str) -> bytes:
    """Raises: IllegalBase64Error (`illegal base64 data at input byte N`)."""
    # Strict mode takes a superfluous "=" behind a whole group, so the length is looked at first.
    if len(text) % 4 == 0:
        try:
            return a2b_base64(text, strict_mode=True)
        except ValueError:
            pass  # line breaks, or illegal: the slow way tells
    data = text.encode("utf-8", "surrogatepass")
    illegal = illegal_byte(data)
    if illegal is not None:
        raise IllegalBase64Error(f"illegal base64 data at input byte {illegal}")
    return a2b_base64(data.translate(None, _LINE_BREAKS), strict_mode=True)


def illegal_byte(data: bytes) -> int | None:
    """Return the position of the first byte that makes `data` no base64 text, None if it is one.

    Positions are those that the reference reports: a text that ends too early is blamed on the
    start of its last, incomplete group.
    """
    position, end, digits = 0, len(data), 0
    while position < end:
        byte = data[position]
        position += 1
        if byte in _ALPHABET:
            digits = (digits + 1) % 4
        elif byte == _PAD:
            return _illegal_padding(data, position, digits)
        elif byte not in _LINE_BREAKS:
            return position - 1
    return position - digits if digits else None


def _illegal_padding(data: bytes, position: int, digits: int) -> int | None:
    """Check what follows a first `=`, which stands before `position` after `digits` digits."""
    if digits < 2:
        return position - 1
    if digits == 2:
        position = _skip_breaks(data, position)
        if position == len(data):
            return position
        if data[position] != _PAD:
            return position - 1
        position += 1
    position = _skip_breaks(data, position)
    return position if position < len(data) else None


def _skip_breaks(data: bytes, position: int) -> int:
    while position < len(data) and data[position] in _LINE_BREAKS:
        position += 1
    return position
