"""The sans-IO gRPC connection: what a peer may say, and what it gets back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.grpc_peer import RawPeer, frame, message
from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc import (
    BidiMethod,
    BidiStream,
    CallInfo,
    GrpcError,
    Limits,
    Metadata,
    Methods,
    StatusCode,
    UnaryMethod,
)
from wkhost.plugin_host.grpc.events import (
    CallClosed,
    CallOpened,
    Event,
    HalfClosed,
    MessageReceived,
    UnaryRequest,
)
from wkhost.plugin_host.grpc.frames import (
    DATA,
    FLAG_ACK,
    FLAG_PADDED,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from wkhost.plugin_host.grpc.wire import ServerWire

INITIAL_WINDOW_SIZE = 4


class Nothing:
    def opened(self, stream: BidiStream, metadata: Metadata) -> None: ...
    def message(self, data: bytes) -> None: ...
    def half_closed(self) -> None: ...
    def writable(self) -> None: ...
    def closed(self, error: GrpcError | None) -> None: ...


async def unary(request: bytes, call: CallInfo) -> bytes:
    return request


METHODS: Methods = {
    "/t.T/U": UnaryMethod(unary, max_message_bytes=100_000),
    "/t.T/B": BidiMethod(Nothing, max_message_bytes=100_000),
}


class Pair:
    """A raw peer and the wire, joined."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.wire = ServerWire(METHODS, limits)
        self.peer = RawPeer()
        self.send(RawPeer.START)

    def send(self, data: bytes, now: float = 0.0) -> list[Event]:
        events = self.wire.receive(data, now)
        while self.wire.backlog:
            events += self.wire.receive(b"", now)
        self.peer.receive(self.wire.data_to_send())
        return events + self.wire.take_events()

    def flush(self) -> list[Event]:
        self.peer.receive(self.wire.data_to_send())
        return self.wire.take_events()


def test_unary_call_is_one_event_with_its_metadata_and_deadline() -> None:
    pair = Pair()
    extra = (("x-a", "b"), ("x-raw-bin", "AP8"), ("grpc-timeout", "250m"), ("user-agent", "me"))
    head = pair.peer.headers(1, "/t.T/U", extra=extra)
    (event,) = pair.send(head + pair.peer.body(1, message(b"hi")), now=10.0)
    assert isinstance(event, UnaryRequest)
    assert (event.data, event.path, event.deadline) == (b"hi", "/t.T/U", 10.25)
    assert event.metadata == (("x-a", "b"), ("x-raw-bin", b"\x00\xff"))
    pair.wire.reply(1, b"answer")
    assert [type(e) for e in pair.flush()] == [CallClosed]
    assert pair.peer.data[1] == message(b"answer")
    assert pair.peer.status[1] == "0"
    assert pair.wire.idle


def test_stream_messages_arrive_in_order_then_the_half_close() -> None:
    pair = Pair()
    data = b"".join(message(bytes([n]) * (n * 700)) for n in range(30))
    events = pair.send(pair.peer.headers(1, "/t.T/B") + pair.peer.body(1, data))
    assert isinstance(events[0], CallOpened)
    assert [e.data for e in events if isinstance(e, MessageReceived)] == [
        bytes([n]) * (n * 700) for n in range(30)
    ]
    assert isinstance(events[-1], HalfClosed)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"path": "/t.T/X"}, "12"),
        ({"method": "GET"}, "13"),
        ({"te": ""}, "13"),
        ({"content_type": "application/json"}, "2"),
        ({"content_type": "application/grpcx"}, "2"),
        ({"extra": (("grpc-encoding", "gzip"),)}, "12"),
        ({"extra": (("grpc-timeout", "soon"),)}, "13"),
        ({"extra": (("x-bin", "!!"),)}, "13"),
    ],
)
def test_request_that_is_not_a_call_is_answered_and_the_connection_lives(
    changed: dict[str, Any], status: str
) -> None:
    pair = Pair()
    assert pair.send(pair.peer.headers(1, **{"path": "/t.T/U", **changed})) == []
    assert pair.peer.status[1] == status
    (event,) = pair.send(pair.peer.call(3, "/t.T/U", b"hi"))
    assert isinstance(event, UnaryRequest)


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;x=y"])
def test_content_type_may_name_a_format(content_type: str) -> None:
    pair = Pair()
    head = pair.peer.headers(1, "/t.T/U", content_type=content_type)
    assert len(pair.send(head + pair.peer.body(1, message(b"")))) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "12"),
        (message(b"a") + message(b"b"), "12"),
        (message(b"abc")[:-1], "13"),
        (message(b"abc", compressed=1), "12"),
        (message(bytes(100_001)), "8"),
    ],
    ids=["none", "two", "cut", "compressed", "oversize"],
)
def test_unary_request_must_be_one_whole_message(body: bytes, status: str) -> None:
    pair = Pair()
    assert pair.send(pair.peer.headers(1, "/t.T/U") + pair.peer.body(1, body)) == []
    assert pair.peer.status[1] == status
    assert pair.wire.idle


def test_oversize_message_ends_the_stream_before_it_is_buffered() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    (closed,) = pair.send(pair.peer.body(1, b"\x00\x00\x10\x00\x00", end=False))
    assert isinstance(closed, CallClosed)
    assert closed.error is not None
    assert closed.error.code is StatusCode.RESOURCE_EXHAUSTED
    # What was on its way belongs to nobody and does no harm.
    assert pair.send(pair.peer.body(1, bytes(16_000), end=True)) == []


def test_sending_keeps_to_the_windows_of_the_peer() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    pair.wire.send_message(1, bytes(99_995))
    pair.wire.finish(1)
    assert pair.flush() == []
    assert len(pair.peer.data[1]) == 65_535  # both windows at their default
    assert pair.wire.unsent_bytes(1) == 100_000 - 65_535
    update = (20_000).to_bytes(4, "big")
    pair.send(frame(WINDOW_UPDATE, 0, 1, update))
    assert len(pair.peer.data[1]) == 65_535
    pair.send(frame(WINDOW_UPDATE, 0, 0, update))
    assert len(pair.peer.data[1]) == 85_535
    update = (100_000).to_bytes(4, "big")
    events = pair.send(frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, 1, update))
    assert [type(e) for e in events] == [CallClosed]
    assert pair.peer.data[1] == message(bytes(99_995))
    assert pair.peer.status[1] == "0"


def test_settings_change_the_windows_of_open_streams() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    shrink = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (10).to_bytes(4, "big")
    pair.send(frame(SETTINGS, body=shrink))
    pair.wire.send_message(1, bytes(95))
    pair.flush()
    assert len(pair.peer.data[1]) == 10
    grow = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (60).to_bytes(4, "big")
    pair.send(frame(SETTINGS, body=grow))
    assert len(pair.peer.data[1]) == 60


def test_stalled_stream_leaves_the_others_alone() -> None:
    pair = Pair()
    window = (1_000_000).to_bytes(4, "big")
    pair.send(frame(WINDOW_UPDATE, 0, 0, window) + pair.peer.headers(1, "/t.T/B"))
    pair.wire.send_message(1, bytes(90_000))
    pair.send(pair.peer.call(3, "/t.T/U", b"hi"))
    pair.wire.reply(3, b"answer")
    pair.flush()
    assert pair.peer.status[3] == "0"
    assert pair.wire.unsent_bytes(1) > 0


def test_answers_that_nobody_reads_are_bounded() -> None:
    pair = Pair(Limits(max_unsent=150_000))
    zero = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
    pair.send(frame(SETTINGS, body=zero))
    for stream_id in (1, 3, 5):
        pair.send(pair.peer.call(stream_id, "/t.T/U", b"hi"))
        pair.wire.reply(stream_id, bytes(70_000))
    pair.flush()
    assert pair.peer.status == {5: "8"}


def test_unfinished_requests_are_bounded_over_all_calls() -> None:
    pair = Pair(Limits(max_buffered=170_000))
    for stream_id in (1, 3):
        part = message(bytes(90_000))[:70_000]
        head = pair.peer.headers(stream_id, "/t.T/U")
        pair.send(head + pair.peer.body(stream_id, part, end=False))
    assert pair.peer.status == {}
    part = message(bytes(90_000))[:70_000]
    pair.send(pair.peer.headers(5, "/t.T/U") + pair.peer.body(5, part, end=False))
    assert pair.peer.status == {5: "8"}
    (event,) = pair.send(pair.peer.body(1, bytes(20_005)))
    assert isinstance(event, UnaryRequest)
    assert event.data == bytes(90_000)


def test_windows_reopen_so_that_a_long_stream_never_stops() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    for _ in range(300):  # 30 MB, more than both windows
        pair.send(pair.peer.body(1, message(bytes(99_000)), end=False))
    streams = {stream_id for kind, _, stream_id, _ in pair.peer.frames if kind == WINDOW_UPDATE}
    assert streams == {0, 1}


def test_padding_is_dropped_and_counted() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    body = bytes([3]) + message(b"a padded message") + bytes(3)
    (event,) = pair.send(frame(DATA, FLAG_PADDED, 1, body))
    assert isinstance(event, MessageReceived)
    assert event.data == b"a padded message"


def test_ping_is_answered_and_its_answer_is_not() -> None:
    pair = Pair()
    pair.send(frame(PING, 0, 0, b"12345678") + frame(PING, FLAG_ACK, 0, b"87654321"))
    assert [f for f in pair.peer.frames if f[0] == PING] == [(PING, FLAG_ACK, 0, b"12345678")]


def test_reset_cancels_the_call() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B") + pair.peer.call(3, "/t.T/U", b"hi"))
    cancel = (8).to_bytes(4, "big")
    events = pair.send(frame(RST_STREAM, 0, 1, cancel) + frame(RST_STREAM, 0, 3, cancel))
    errors = [e.error for e in events if isinstance(e, CallClosed)]
    assert [e and e.code for e in errors] == [StatusCode.CANCELLED] * 2
    pair.wire.reply(3, b"too late")
    pair.flush()
    assert 3 not in pair.peer.data


def test_stream_over_the_limit_is_refused_alone() -> None:
    pair = Pair(Limits(max_concurrent_calls=2))
    for stream_id in (1, 3, 5, 7):
        pair.send(pair.peer.headers(stream_id, "/t.T/B"))
    refused = [(s, int.from_bytes(b, "big")) for k, _, s, b in pair.peer.frames if k == RST_STREAM]
    assert refused == [(7, 7)]


def test_drain_lets_running_calls_end_and_refuses_new_ones() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    pair.wire.drain()
    pair.flush()
    assert pair.peer.kinds().count(GOAWAY) == 1
    pair.send(pair.peer.headers(3, "/t.T/B"))
    assert pair.peer.frames[-1][:3] == (RST_STREAM, 0, 3)
    pair.wire.finish(1)
    pair.flush()
    assert pair.peer.status == {1: "0"}


def test_goaway_of_the_peer_does_not_end_running_calls() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B") + frame(GOAWAY, 0, 0, bytes(8)))
    (event,) = pair.send(pair.peer.body(1, message(b"still talking"), end=False))
    assert isinstance(event, MessageReceived)
    pair.wire.finish(1)
    pair.flush()
    assert pair.peer.status == {1: "0"}


def test_window_overflow_of_a_stream_ends_that_stream_only() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    (closed,) = pair.send(frame(WINDOW_UPDATE, 0, 1, (2**31 - 1).to_bytes(4, "big")))
    assert isinstance(closed, CallClosed)
    assert len(pair.send(pair.peer.call(3, "/t.T/U", b"hi"))) == 1


def test_every_byte_boundary_may_split_a_read() -> None:
    whole = Pair()
    data = whole.peer.headers(1, "/t.T/B") + whole.peer.body(1, message(b"one") + message(b"two2"))
    expected = whole.send(data)
    pieces = Pair()
    seen: list[Event] = []
    for position in range(len(data)):
        seen += pieces.send(data[position : position + 1])
    kinds = [(type(e), getattr(e, "data", None)) for e in seen]
    assert kinds == [(type(e), getattr(e, "data", None)) for e in expected]


def test_error_is_raised_once_and_names_the_fault() -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError, match="PING"):
        pair.send(frame(PING, 0, 0, b"short"))
    pair.flush()
    assert pair.peer.frames[-1][0] == GOAWAY
    assert pair.wire.receive(frame(PING, 0, 0, bytes(8)), 0.0) == []


def test_known_header_blocks_mean_the_same_until_the_table_changes() -> None:
    """The first call fills the table, the next ones only point into it, and then it moves."""
    pair = Pair()
    seen = []
    extras = [(("x-n", "1"),), (("x-n", "1"),), (("x-n", "1"),), (("x-other", "2"),)]
    for number, extra in enumerate([*extras, *extras, *extras]):
        stream_id = 2 * number + 1
        head = pair.peer.headers(stream_id, "/t.T/U", extra=extra)
        event = pair.send(head + pair.peer.body(stream_id, message(b"hi")), now=number)[-1]
        assert isinstance(event, UnaryRequest)
        assert event.stream_id == stream_id
        seen.append(event.metadata)
        pair.wire.reply(stream_id, b"")
    assert seen == [*extras, *extras, *extras]


def test_deadline_of_a_known_header_block_counts_from_its_own_arrival() -> None:
    pair = Pair()
    for number in range(4):
        stream_id = 2 * number + 1
        head = pair.peer.headers(stream_id, "/t.T/U", extra=(("grpc-timeout", "1S"),))
        (event,) = pair.send(head + pair.peer.body(stream_id, message(b"hi")), now=10.0 * number)
        assert isinstance(event, UnaryRequest)
        assert event.deadline == 10.0 * number + 1


@pytest.mark.parametrize("stream_id", [1, 3, 4, 0])
def test_known_header_block_opens_no_stream_that_may_not_be(stream_id: int) -> None:
    pair = Pair()
    for used in (1, 3):
        block = pair.peer.headers(used, "/t.T/U")[9:]
        pair.send(frame(HEADERS, 4, used, block) + pair.peer.body(used, message(b"hi")))
    with pytest.raises(RemoteProtocolError):
        pair.send(frame(HEADERS, 4, stream_id, block))


@pytest.mark.parametrize("kind", [DATA, RST_STREAM, WINDOW_UPDATE])
@pytest.mark.parametrize("stream_id", [2, 7])
def test_frame_of_a_stream_that_was_never_opened_ends_the_connection(
    kind: int, stream_id: int
) -> None:
    pair = Pair()
    pair.send(pair.peer.call(1, "/t.T/U", b"hi"))
    with pytest.raises(RemoteProtocolError, match="never opened"):
        pair.send(frame(kind, 0, stream_id, (8).to_bytes(4, "big")))


def test_what_comes_late_for_a_call_that_ended_does_no_harm_and_keeps_the_window() -> None:
    pair = Pair()
    pair.send(pair.peer.headers(1, "/t.T/B"))
    pair.wire.finish(1)
    pair.flush()
    for _ in range(2000):  # 32 MB, more than the window of the connection
        assert pair.send(frame(DATA, 0, 1, bytes(16_000))) == []
    assert pair.send(frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big"))) == []
    assert len(pair.send(pair.peer.call(3, "/t.T/U", b"hi"))) == 1


def test_data_after_the_end_of_a_running_call_ends_the_connection() -> None:
    pair = Pair()
    pair.send(pair.peer.call(1, "/t.T/U", b"hi"))
    with pytest.raises(RemoteProtocolError, match="after the end"):
        pair.send(frame(DATA, 0, 1, message(b"more")))


def test_long_status_message_arrives_whole() -> None:
    pair = Pair()
    pair.send(pair.peer.call(1, "/t.T/U", b"hi"))
    pair.wire.finish(1, StatusCode.ABORTED, "\u00e9" * 500)
    pair.flush()
    assert pair.peer.status == {1: "10"}
    assert pair.peer.frames[-1][3].count(b"%C3%A9") == 500
