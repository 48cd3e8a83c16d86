"""The SDK's end of the wire, byte by byte: windows, partial frames, ends, and rules broken."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import frames
from plugin_sdk.call import Call
from plugin_sdk.connection import CONNECTION_WINDOW, STREAM_WINDOW, Connection
from plugin_sdk.frames import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, frame

Sent = list[tuple[int, int, int, bytes]]


class Wire:
    """Stands where asyncio's transport would; `sent` cuts what was written into frames."""

    def __init__(self) -> None:
        self.closed = False
        self.writes = 0
        self._written = b""

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._written += data

    def close(self) -> None:
        self.closed = True

    def sent(self) -> Sent:
        data, self._written = self._written, b""
        found: Sent = []
        while data:
            high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data)
            stop = 9 + (high << 8 | low)
            found.append((kind, flags, stream_id, data[9:stop]))
            data = data[stop:]
        return found


class Heard(Call):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.messages: list[bytes] = []
        self.end: tuple[str, str] | None = None
        self.free = 0

    def received(self, message: bytes) -> None:
        self.messages.append(message)

    def drained(self) -> None:
        self.free += 1

    def ended(self, status: str, text: str) -> None:
        assert self.end is None
        self.end = status, text


def connected() -> tuple[Connection, Wire]:
    connection, wire = Connection(), Wire()
    transport: Any = wire
    connection.connection_made(transport)
    assert wire._written.startswith(frames.PREFACE)
    wire._written = b""
    return connection, wire


def begun(window: int = 1 << 20) -> tuple[Connection, Wire, Heard]:
    connection, wire = connected()
    settings = frames.INITIAL_WINDOW_SIZE.to_bytes(2, "big") + window.to_bytes(4, "big")
    connection.data_received(frame(frames.SETTINGS, 0, 0, settings))
    call = Heard(connection)
    connection.open(call, frames.request_headers("/some.Service/Method"))
    assert [kind for kind, *_ in wire.sent()] == [frames.SETTINGS, HEADERS]
    return connection, wire, call


def message(data: bytes) -> bytes:
    return frames.MESSAGE_PREFIX.pack(0, len(data)) + data


def trailers(status: bytes, text: bytes = b"") -> bytes:
    block = Encoder().encode([(b"grpc-status", status), (b"grpc-message", text)])
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block)


def data_of(sent: Sent) -> bytes:
    return b"".join(body for kind, _, _, body in sent if kind == DATA)


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.integers(1, 200),
    st.integers(1, 50),
    st.booleans(),
)
def test_messages_arrive_whole_however_the_bytes_are_cut(
    sent: list[bytes], frame_bytes: int, read_bytes: int, padded: bool
) -> None:
    connection, _, call = begun()
    body = b"".join(map(message, sent))
    wire = b""
    for at in range(0, len(body), frame_bytes):
        piece = body[at : at + frame_bytes]
        flags, content = (PADDED, b"\3" + piece + b"\0\0\0") if padded else (0, piece)
        wire += frame(DATA, flags, 1, content)
    wire += trailers(b"0")
    for at in range(0, len(wire), read_bytes):
        connection.data_received(wire[at : at + read_bytes])
    assert call.messages == sent
    assert call.end == ("OK", "")


def test_a_message_larger_than_the_windows_waits_for_them_and_leaves_whole() -> None:
    connection, wire, call = begun(window=1000)
    call.send(b"a" * 50_000)
    call.send(b"b" * 50_000)
    assert call.blocked
    sent = wire.sent()
    got = data_of(sent)
    assert len(got) == 1000
    connection.data_received(frames.window_frame(1, 1 << 20))
    got += data_of(wire.sent())
    assert len(got) == frames.DEFAULT_WINDOW
    assert call.free == 0
    connection.data_received(frames.window_frame(0, 1 << 20))
    last = wire.sent()
    assert max(len(body) for *_, body in last) <= frames.MAX_FRAME
    assert got + data_of(last) == message(b"a" * 50_000) + message(b"b" * 50_000)
    assert not call.blocked
    assert call.free == 1


def test_our_half_closes_after_what_waited() -> None:
    connection, wire, call = begun(window=10)
    call.send(b"a" * 20)
    call.finish()
    assert not any(flags & END_STREAM for _, flags, _, _ in wire.sent())
    connection.data_received(frames.window_frame(1, 100))
    *_, (kind, flags, _, body) = wire.sent()
    assert (kind, flags, body) == (DATA, END_STREAM, b"")


def test_our_windows_reopen_as_bytes_arrive() -> None:
    connection, wire, _ = begun()
    piece = frame(DATA, 0, 1, message(b"x" * 16_000))
    opened = {0: 0, 1: 0}
    for _ in range(2 * CONNECTION_WINDOW // 16_005):
        connection.data_received(piece)
        for kind, _flags, stream_id, body in wire.sent():
            assert kind == frames.WINDOW_UPDATE
            opened[stream_id] += int.from_bytes(body, "big")
    assert opened[0] >= CONNECTION_WINDOW
    assert opened[1] >= 2 * CONNECTION_WINDOW - STREAM_WINDOW


def test_a_paused_socket_holds_a_call_back_until_it_takes_more() -> None:
    connection, _, call = begun()
    connection.pause_writing()
    assert call.blocked
    connection.resume_writing()
    assert not call.blocked
    assert call.free == 1


def test_a_probe_is_answered() -> None:
    connection, wire, _ = begun()
    connection.data_received(frame(frames.PING, 0, 0, b"12345678"))
    connection.data_received(frame(frames.PING, ACK, 0, b"87654321"))
    assert wire.sent() == [(frames.PING, ACK, 0, b"12345678")]


def test_a_status_is_read_with_its_text() -> None:
    connection, _, call = begun()
    connection.data_received(trailers(b"7", b"send.as: %E2%82%AC is not granted"))
    assert call.end == ("PERMISSION_DENIED", "send.as: \u20ac is not granted")


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (frame(frames.RST_STREAM, 0, 1, frames.CANCEL.to_bytes(4, "big")), "CANCELLED"),
        (frame(frames.RST_STREAM, 0, 1, frames.REFUSED_STREAM.to_bytes(4, "big")), "UNAVAILABLE"),
        (frame(frames.GOAWAY, 0, 0, bytes(8)), "UNAVAILABLE"),
        (frame(DATA, END_STREAM, 1, b""), "UNKNOWN"),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode([(":status", "503")])), ""),
    ],
)
def test_a_call_ends_once_however_it_ends(ending: bytes, status: str) -> None:
    connection, _, call = begun()
    connection.data_received(ending)
    assert call.end is not None
    assert call.end[0] == (status or "UNKNOWN")
    call.send(b"too late")
    call.cancel()
    connection.connection_lost(None)


def test_a_header_block_may_come_in_pieces() -> None:
    connection, _, call = begun()
    block = Encoder().encode([(b"grpc-status", b"0"), (b"some", b"x" * 2000)])
    connection.data_received(frame(HEADERS, END_STREAM, 1, block[:7]))
    connection.data_received(frame(frames.CONTINUATION, 0, 1, block[7:20]))
    connection.data_received(frame(frames.CONTINUATION, END_HEADERS, 1, block[20:]))
    assert call.end == ("OK", "")


def test_what_comes_for_a_cancelled_call_is_dropped_and_the_next_is_served() -> None:
    connection, wire, call = begun()
    call.cancel()
    assert wire.sent() == [(frames.RST_STREAM, 0, 1, frames.CANCEL.to_bytes(4, "big"))]
    connection.data_received(frame(DATA, 0, 1, message(b"late")) + trailers(b"0"))
    assert (call.messages, call.end) == ([], None)
    following = Heard(connection)
    connection.open(following, frames.request_headers("/some.Service/Method"))
    connection.data_received(frame(DATA, 0, 3, message(b"answer")))
    assert following.messages == [b"answer"]


@pytest.mark.parametrize(
    "broken",
    [
        b"\xff\xff\xff" + bytes(6),
        frame(frames.PUSH_PROMISE, 0, 1, b""),
        frame(frames.CONTINUATION, END_HEADERS, 1, b""),
        frame(HEADERS, 0, 1, b"") + frame(frames.PING, 0, 0, bytes(8)),
        frame(HEADERS, 0, 1, b"") + frame(DATA, 0, 1, b""),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        frame(DATA, PADDED, 1, b"\5abc"),
        frame(DATA, 0, 1, b"\1\0\0\0\1x"),
        frame(DATA, 0, 1, b"\0\xff\xff\xff\xffx"),
        frame(frames.SETTINGS, 0, 0, b"123"),
    ],
)
def test_a_broken_rule_ends_the_connection_and_its_calls(broken: bytes) -> None:
    connection, wire, call = begun()
    connection.data_received(broken)
    assert wire.closed
    assert call.end is not None
    assert call.end[0] == "UNAVAILABLE"
    assert "broke the protocol" in call.end[1]
    after = Heard(connection)
    connection.open(after, ())
    assert after.end == call.end


def test_one_event_leads_to_one_write() -> None:
    connection, wire = connected()

    class Echo(Call):
        def received(self, data: bytes) -> None:
            self.send(data)

    call = Echo(connection)
    connection.open(call, frames.request_headers("/some.Service/Method"))
    before = wire.writes
    connection.data_received(frame(DATA, 0, 1, message(b"a") + message(b"b") + message(b"c")))
    assert wire.writes == before + 1
    assert data_of(wire.sent()) == message(b"a") + message(b"b") + message(b"c")


def test_headers_are_read_as_they_were_meant_however_often_they_are_sent() -> None:
    connection, wire = connected()
    decoder = Decoder()
    paths = ["/a.Service/One", "/a.Service/Two", "/a.Service/One", "/a.Service/Three"] * 3
    sizes = []
    for number, path in enumerate(paths):
        if number == 9:
            smaller = frames.HEADER_TABLE_SIZE.to_bytes(2, "big") + (256).to_bytes(4, "big")
            connection.data_received(frame(frames.SETTINGS, 0, 0, smaller))
            wire.sent()
            decoder.max_allowed_table_size = 256
        headers = frames.request_headers(path, 10)
        connection.open(Heard(connection), headers)
        ((kind, flags, stream_id, block),) = wire.sent()
        assert (kind, flags, stream_id) == (HEADERS, END_HEADERS, 2 * number + 1)
        assert tuple(decoder.decode(block, raw=True)) == headers
        sizes.append(len(block))
    assert sizes[8] == len(headers)
