"""Checking the headers of a request against what a gRPC call must look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from wkhost.errors import WkhostError
from wkhost.plugin_host.grpc.methods import Method
from wkhost.plugin_host.grpc.status import Metadata, StatusCode, parse_metadata, parse_timeout

_CONTENT_TYPE = b"application/grpc"


class Request(msgspec.Struct, frozen=True):
    """A well-formed request for a method that exists."""

    path: str
    method: Method
    metadata: Metadata
    timeout_s: float | None


class Rejected(WkhostError):  # noqa: N818 - an answer, not a fault
    """The request is answered at once with this status."""

    def __init__(self, code: StatusCode, message: str, http_status: int = 200) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.http_status = http_status


def check_request(headers: Iterable[tuple[bytes, bytes]], methods: Mapping[str, Method]) -> Request:
    """The call that the headers ask for; raises Rejected. HTTP rules are h2's business."""
    pairs = list(headers)
    single = dict(pairs)
    if single.get(b":method") != b"POST":
        raise Rejected(StatusCode.INTERNAL, "a gRPC call must be a POST", 405)
    _check_content_type(single.get(b"content-type", b""))
    if single.get(b"te") != b"trailers":
        raise Rejected(StatusCode.INTERNAL, "te must be trailers", 400)
    if b"content-length" in single:
        raise Rejected(StatusCode.INTERNAL, "content-length is not part of a gRPC call", 400)
    path = single.get(b":path", b"").decode("ascii", "replace")
    method = methods.get(path)
    if method is None:
        raise Rejected(StatusCode.UNIMPLEMENTED, f"no such method: {path[:256]}")
    encoding = single.get(b"grpc-encoding", b"identity")
    if encoding != b"identity":
        name = encoding[:32].decode("ascii", "replace")
        raise Rejected(StatusCode.UNIMPLEMENTED, f"grpc-encoding must be identity, not {name}")
    try:
        metadata = parse_metadata(pairs)
        timeout = single.get(b"grpc-timeout")
        timeout_s = None if timeout is None else parse_timeout(timeout)
    except ValueError as error:
        raise Rejected(StatusCode.INTERNAL, str(error)) from error
    return Request(path, method, metadata, timeout_s)


def _check_content_type(value: bytes) -> None:
    rest = value[len(_CONTENT_TYPE) :]
    if not value.startswith(_CONTENT_TYPE) or (rest and rest[:1] not in b"+;"):
        raise Rejected(StatusCode.UNKNOWN, f"content-type must be {_CONTENT_TYPE.decode()}", 415)
