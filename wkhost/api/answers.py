"""Answers of the API: envelopes, error numbers, headers. Bytes for the HTTP server, no routes."""

from __future__ import annotations

import msgspec

from wkhost.api.schema import Failure, Status
from wkhost.link.contract import ErrorKind

CORS_HEADERS: list[tuple[bytes, bytes]] = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-credentials", b"true"),
    (b"access-control-allow-methods", b"POST, OPTIONS, GET, PUT,DELETE,PATCH"),
    (
        b"access-control-allow-headers",
        b"Content-Type, Authorization, Content-Length, Accept-Encoding, X-CSRF-Token, token, "
        b"accept, origin, Cache-Control, X-Requested-With, appid, noncestr, sign, timestamp",
    ),
]
"""On every answer; the HTTP server adds them. Source: HTTP API, Envelope."""

MESSAGE_TOO_LARGE = 2001
MESSAGE_FORMAT = 2003
CHANNEL_NOT_FOUND = 3001
CHANNEL_BANNED = 3002
PERMISSION_DENIED = 3003
SYSTEM_OVERLOAD = 5001
DATABASE_ERROR = 5002
NETWORK_ERROR = 5003
"""The guide's error numbers, `code` beside `msg` and `status`. Source: HTTP API, Error codes."""

CODE_OF_ERROR: dict[ErrorKind, int] = {
    ErrorKind.INVALID: MESSAGE_FORMAT,
    ErrorKind.UNAVAILABLE: DATABASE_ERROR,
    ErrorKind.NOT_FOUND: CHANNEL_NOT_FOUND,
    ErrorKind.FORBIDDEN: PERMISSION_DENIED,
    ErrorKind.INTERNAL: DATABASE_ERROR,
}

_JSON = (b"content-type", b"application/json; charset=utf-8")
_encoder = msgspec.json.Encoder()


class Answer:
    """One answer, ready to be written."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class ApiError(Exception):
    """A request ends with 400 and this text, or with another `status` where a route says so."""

    def __init__(self, msg: str, code: int = MESSAGE_FORMAT) -> None:
        super().__init__(msg)
        self.msg = msg
        self.code = code

    def answer(self) -> Answer:
        return json_answer(Failure(self.msg, 400, self.code), status=400)


def json_answer(value: object, *, status: int = 200) -> Answer:
    body = _encoder.encode(value)
    return Answer(status, body, [_JSON, (b"content-length", b"%d" % len(body))])


def text_answer(status: int, content_type: bytes, body: bytes) -> Answer:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    return Answer(status, body, headers)


def empty_answer(status: int) -> Answer:
    length = [] if status == 204 else [(b"content-length", b"0")]
    return Answer(status, b"", length)


OK = json_answer(Status(200))
NO_CONTENT = empty_answer(204)
UNAUTHORIZED = empty_answer(401)
PANIC = empty_answer(500)
NOT_FOUND = text_answer(404, b"text/plain", b"404 page not found")
