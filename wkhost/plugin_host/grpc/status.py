"""gRPC status codes, errors, metadata and the small text formats of its headers.

Source: the gRPC-over-HTTP/2 protocol description (Requests, Responses, Timeout, Status-Message).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from enum import IntEnum
from urllib.parse import quote

from wkhost.errors import WkhostError

Metadata = tuple[tuple[str, str | bytes], ...]
"""Call metadata in wire order; values of keys ending in `-bin` are bytes, all others text."""

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_STATUS_MESSAGE_BYTES = 1024
_NOT_METADATA = (b":", b"grpc-")
_HTTP_HEADERS = frozenset((b"content-type", b"te", b"user-agent", b"content-length"))


class StatusCode(IntEnum):
    """How a call ended, as numbered on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(WkhostError):
    """A call ends with a status other than OK; `message` is what the peer may read."""

    def __init__(self, code: StatusCode, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}" if self.message else self.code.name


def encode_message(message: str) -> bytes:
    """Percent-encode a status message (at most 1 KiB of UTF-8) for the `grpc-message` header."""
    raw = message.encode("utf-8", "replace")[:_MAX_STATUS_MESSAGE_BYTES]
    # Cutting bytes may split a character; the rest of it is dropped.
    text = raw.decode("utf-8", "ignore")
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout` value such as b"250m"; ValueError when malformed."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise ValueError(f"grpc-timeout must be 1 to 8 digits and a unit, got {value[:32]!r}")
    return int(match[1]) * _TIMEOUT_UNIT_S[match[2]]


def parse_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The custom metadata among request headers; ValueError names a malformed one."""
    found: list[tuple[str, str | bytes]] = []
    for key, value in headers:
        if key in _HTTP_HEADERS or key.startswith(_NOT_METADATA):
            continue
        name = key.decode("ascii", "replace")
        if key.endswith(b"-bin"):
            found.extend((name, _decode_binary(name, part)) for part in value.split(b","))
        else:
            found.append((name, value.decode("latin-1")))
    return tuple(found)


def _decode_binary(name: str, value: bytes) -> bytes:
    value = value.strip().rstrip(b"=")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"metadata {name} must be base64") from error
