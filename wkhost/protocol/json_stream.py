"""Cut a stream of concatenated JSON objects into single ones, reading every byte once.

The JSON-RPC form has no delimiter on TCP. Only braces and strings matter for finding the end of an
object; whether its inside is JSON is for the decoder to say.
"""

from __future__ import annotations

import re

from wkhost.errors import RemoteProtocolError

MAX_DEPTH = 64
"""Deepest nesting of objects; real requests use 3."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
# Runs without braces; whole strings are swallowed, so the match ends at a brace, at a string that
# is not complete yet, or at the end. Possessive, so nothing is kept for going back.
_RUN = re.compile(rb'[^{}"]*+(?:"(?:[^"\\]++|\\.)*+"[^{}"]*+)*+', re.DOTALL)
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_OPEN, _QUOTE = ord("{"), ord('"')


class JsonStream:
    """Feed bytes, take objects. Raises RemoteProtocolError for what cannot be an object."""

    __slots__ = ("_buf", "_depth", "_in_string", "_max_bytes", "_scanned", "_start")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buf = bytearray()
        self._start = 0
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait here."""
        return len(self._buf) - self._start

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        if self._start:
            del self._buf[: self._start]
            self._scanned -= self._start
            self._start = 0
        self._buf += data

    def next(self) -> bytes | None:
        """Take the next whole object, None if there is none yet."""
        if not self._depth:
            self._start = self._scanned = _end(_SPACE, self._buf, self._start)
            if self._start == len(self._buf):
                return None
            if self._buf[self._start] != _OPEN:
                raise RemoteProtocolError("JSON-RPC: expected an object")
        whole = self._scan()
        if self._scanned - self._start > self._max_bytes:
            raise RemoteProtocolError(f"JSON-RPC: an object exceeds {self._max_bytes} bytes")
        if not whole:
            return None
        start, self._start = self._start, self._scanned
        return bytes(self._buf[start : self._start])

    def _scan(self) -> bool:
        """Move `_scanned` on; True if it now stands behind the end of the object."""
        buf, pos, size = self._buf, self._scanned, len(self._buf)
        if self._in_string:
            pos = _end(_IN_STRING, buf, pos)
            if pos == size or buf[pos] != _QUOTE:
                self._scanned = pos
                return False
            self._in_string = False
            pos += 1
        while True:
            pos = _end(_RUN, buf, pos)
            if pos == size:
                break
            char = buf[pos]
            pos += 1
            if char == _OPEN:
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise RemoteProtocolError(f"JSON-RPC: more than {MAX_DEPTH} nested objects")
            elif char == _QUOTE:
                self._in_string = True
                pos = _end(_IN_STRING, buf, pos)
                break
            else:
                self._depth -= 1
                if not self._depth:
                    self._scanned = pos
                    return True
        self._scanned = pos
        return False


def _end(pattern: re.Pattern[bytes], buf: bytearray, pos: int) -> int:
    """Where a pattern that always matches ends; the match itself must not outlive the call,
    because it locks the buffer's size."""
    match = pattern.match(buf, pos)
    return match.end() if match else pos
