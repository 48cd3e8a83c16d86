"""Whatever a peer sends, the gRPC wire answers, or ends with its one typed error."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.kit.grpc_peer import RawPeer, frame, message
from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc import (
    BidiMethod,
    BidiStream,
    CallInfo,
    GrpcError,
    Metadata,
    Methods,
    StatusCode,
    UnaryMethod,
)
from wkhost.plugin_host.grpc.events import CallClosed, CallOpened, Event, UnaryRequest
from wkhost.plugin_host.grpc.wire import ServerWire


class Nothing:
    def opened(self, stream: BidiStream, metadata: Metadata) -> None: ...
    def message(self, data: bytes) -> None: ...
    def half_closed(self) -> None: ...
    def writable(self) -> None: ...
    def closed(self, error: GrpcError | None) -> None: ...


async def unary(request: bytes, call: CallInfo) -> bytes:
    return request


METHODS: Methods = {"/t.T/U": UnaryMethod(unary, 5_000), "/t.T/B": BidiMethod(Nothing, 5_000)}

stream_ids = st.sampled_from([0, 1, 1, 3, 3, 5, 2, 2**31 - 1])
bodies = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=60).map(message),
    st.sampled_from([b"\x00\x00\x00\x00\x05", bytes(4), b"\x7f\xff\xff\xff", bytes(8)]),
    st.integers(0, 6_000).map(lambda size: message(bytes(size))),
)
frames = st.builds(
    lambda kind, flags, stream_id, body: frame(kind, flags, stream_id, body),
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0xFF]),
    stream_ids,
    bodies,
)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Plausible frames, with well-formed calls among them."""
    peer = RawPeer()
    parts: list[bytes] = []
    next_id = 1
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            path = draw(st.sampled_from(["/t.T/U", "/t.T/B", "/t.T/X"]))
            parts.append(peer.headers(next_id, path, end=draw(st.booleans())))
            next_id += 2
        else:
            parts.append(draw(frames))
    return parts


def drive(wire: ServerWire, pieces: list[bytes]) -> list[Event]:
    """Feed pieces as the server does, answering every call; the typed error ends it."""
    seen: list[Event] = []
    try:
        for piece in pieces:
            events = wire.receive(piece, 0.0)
            while wire.backlog:
                events += wire.receive(b"", 0.0)
            for event in events:
                seen.append(event)
                if isinstance(event, UnaryRequest):
                    wire.reply(event.stream_id, event.data)
                elif isinstance(event, CallOpened):
                    wire.send_message(event.stream_id, b"welcome")
            wire.data_to_send()
    except RemoteProtocolError:
        assert wire.closed
        assert wire.data_to_send()
    return seen


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_after_the_preface_raises_only_the_typed_error(pieces: list[bytes]) -> None:
    drive(ServerWire(METHODS), [RawPeer.START, *pieces])


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_instead_of_the_preface_raises_only_the_typed_error(pieces: list[bytes]) -> None:
    drive(ServerWire(METHODS), pieces)


@given(conversations())
def test_any_frames_raise_only_the_typed_error(parts: list[bytes]) -> None:
    wire = ServerWire(METHODS)
    seen = drive(wire, [RawPeer.START, *parts])
    # Calls end at most once, and only calls that began do.
    ended = [event.stream_id for event in seen if isinstance(event, CallClosed)]
    began = {e.stream_id for e in seen if isinstance(e, CallOpened | UnaryRequest)}
    assert len(ended) == len(set(ended))
    assert set(ended) <= began
    for stream_id in began:
        wire.finish(stream_id, StatusCode.ABORTED, "end of test")
    wire.data_to_send()


@given(conversations(), st.integers(1, 50))
def test_the_cutting_into_reads_changes_nothing(parts: list[bytes], size: int) -> None:
    data = RawPeer.START + b"".join(parts)
    whole = drive(ServerWire(METHODS), [data])
    cut = drive(ServerWire(METHODS), [data[i : i + size] for i in range(0, len(data), size)])
    # An error discards what came in the same read; what was seen before it is the same.
    shorter = min(len(whole), len(cut))
    kinds = [[(type(e), e.stream_id) for e in seen[:shorter]] for seen in (whole, cut)]
    assert kinds[0] == kinds[1]
