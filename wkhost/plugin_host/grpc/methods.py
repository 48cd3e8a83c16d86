"""What a gRPC connection is built from: limits, methods, and the callbacks of a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from wkhost.plugin_host.grpc.status import GrpcError, Metadata, StatusCode

KIB = 1024
MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection. Bytes unless the name says otherwise."""

    max_concurrent_calls: int = 64
    """Unary handlers running at once; the peer may open one stream more, for the hook stream."""
    calls_burst: int = 64
    calls_per_s: float = 500.0
    """Unary calls served; those beyond wait, and hold their places among the concurrent ones."""
    stream_window: int = 1 * MIB
    connection_window: int = 12 * MIB
    max_buffered: int = 8 * MIB
    """Requests held (unfinished ones included) over all calls; beyond it the call is refused.
    It stays below `connection_window` so that half-sent requests cannot block each other."""
    max_unsent: int = 8 * MIB
    """Answers queued over all calls; beyond it a unary answer becomes RESOURCE_EXHAUSTED."""
    max_output: int = 256 * KIB
    """Encoded bytes that wait for the socket. Data beyond it stays queued; reading pauses at
    twice this, so that a peer that only asks and never reads is not answered into memory."""
    max_header_bytes: int = 16 * KIB
    """One header block, encoded or decoded."""
    control_burst: int = 1000
    control_per_s: float = 200.0
    """Control frames (PING, SETTINGS, WINDOW_UPDATE, empty DATA ...) beyond those earned by
    messages: a token bucket. An empty bucket closes the connection."""
    reset_burst: int = 500
    reset_per_s: float = 100.0
    """Streams that end by RST_STREAM, whoever sends it: a token bucket."""

    @property
    def max_streams(self) -> int:
        return self.max_concurrent_calls + 1


class CallInfo(msgspec.Struct, frozen=True, gc=False):
    """What a unary handler knows about its call besides the request bytes.

    `deadline` is on the clock the connection was given (trio's), None when the peer set none.
    """

    method: str
    metadata: Metadata
    deadline: float | None


class BidiStream(Protocol):
    """The sending half of a bidirectional call. All methods are synchronous."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that neither flow control nor the socket has taken yet."""

    def send(self, data: bytes) -> None:
        """Send one message; ignored when the call is already over.

        Nothing bounds what is queued here: hold the next message while `unsent_bytes` is not 0.
        """

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        """End the call after what was sent; ignored when it is already over."""


class StreamHandler(Protocol):
    """Callbacks of one bidirectional call. They run in the connection's task and must not block.

    A GrpcError raised by `opened`, `message` or `half_closed` ends the call with its status; any
    other exception is logged and ends it with INTERNAL.
    """

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        """The call begins."""

    def message(self, data: bytes) -> None:
        """One complete message, in order."""

    def half_closed(self) -> None:
        """The peer will send no more messages; end the call with `finish` when done."""

    def writable(self) -> None:
        """`unsent_bytes` fell to zero after a send that could not be taken at once."""

    def closed(self, error: GrpcError | None) -> None:
        """The call is over; nothing is called after this. None: it ended by `finish` with OK."""


UnaryHandler = Callable[[bytes, CallInfo], bytes | Awaitable[bytes]]
"""Returns the answer, or what to await for it where that takes more than this turn."""


class UnaryMethod(msgspec.Struct, frozen=True):
    """One request, one answer. The handler raises GrpcError to answer with another status."""

    handler: UnaryHandler
    max_message_bytes: int = 4 * MIB


class BidiMethod(msgspec.Struct, frozen=True):
    """A stream each way. `new_handler` is called once per call."""

    new_handler: Callable[[], StreamHandler]
    max_message_bytes: int = 4 * MIB


Method = UnaryMethod | BidiMethod
Methods = Mapping[str, Method]
"""Keyed by full path, such as "/package.Service/Method"."""
