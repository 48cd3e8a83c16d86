"""Lineage: a signed note of which call or message caused a plugin's send, and at which hop.

Tokens are bound to one plugin and to this process: another plugin's, or one from before a restart,
does not verify. A call's token holds while the call is open; a message's token (from `receive`)
for some minutes, because bots answer late.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable

import msgspec

MAX_HOP = 4
MESSAGE_TOKEN_S = 600.0
_MAC_BYTES = 16
_CALL, _MESSAGE = 0, 1
_BODY = struct.Struct(">BQBI")
_SIZE = _BODY.size + _MAC_BYTES


class Cause(msgspec.Struct, frozen=True):
    """A verified token. `call_id` is 0 where a message, not an open call, is the cause."""

    call_id: int
    hop: int


class Lineage:
    """Signs and checks tokens. `clock` gives seconds, as the rest of the process counts them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock

    def for_call(self, no: str, call_id: int, hop: int) -> bytes:
        return self._sign(no, _BODY.pack(_CALL, call_id, min(hop, 255), 0))

    def for_message(self, no: str, message_id: int, hop: int) -> bytes:
        until = int(self._clock() + MESSAGE_TOKEN_S) & 0xFFFFFFFF
        return self._sign(no, _BODY.pack(_MESSAGE, message_id, min(hop, 255), until))

    def verify(self, no: str, token: bytes) -> Cause | None:
        """Return what the token says, or None if it is not this plugin's or is too old."""
        if len(token) != _SIZE:
            return None
        body = token[: _BODY.size]
        if not hmac.compare_digest(self._sign(no, body), token):
            return None
        kind, number, hop, until = _BODY.unpack(body)
        if kind == _CALL:
            return Cause(call_id=number, hop=hop)
        return Cause(call_id=0, hop=hop) if self._clock() < until else None

    def _sign(self, no: str, body: bytes) -> bytes:
        return body + hmac.digest(self._key, no.encode() + b"\0" + body, "sha256")[:_MAC_BYTES]
