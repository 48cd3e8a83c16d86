"""What happened on the wire, in the order in which it did."""

from __future__ import annotations

import msgspec

from wkhost.plugin_host.grpc.methods import BidiMethod, UnaryMethod
from wkhost.plugin_host.grpc.status import GrpcError, Metadata


class CallOpened(msgspec.Struct, gc=False):
    """A bidirectional call begins. `deadline` is on the clock of `receive`, None for none."""

    stream_id: int
    method: BidiMethod
    metadata: Metadata
    deadline: float | None


class MessageReceived(msgspec.Struct, gc=False):
    """One message of a bidirectional call."""

    stream_id: int
    data: bytes


class HalfClosed(msgspec.Struct, gc=False):
    """The peer of a bidirectional call will send no more."""

    stream_id: int


class UnaryRequest(msgspec.Struct, gc=False):
    """A unary call with its whole request."""

    stream_id: int
    path: str
    method: UnaryMethod
    metadata: Metadata
    deadline: float | None
    data: bytes


class CallClosed(msgspec.Struct, gc=False):
    """A call that was announced is over; `error` is None after `finish` with OK."""

    stream_id: int
    error: GrpcError | None


Event = CallOpened | MessageReceived | HalfClosed | UnaryRequest | CallClosed
