"""WebSocket without sockets: any chunking, and outgoing frames as the library reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from wkhost.errors import RemoteProtocolError
from wkhost.gateway.layers import WebSocketLayer


def client_request() -> tuple[ClientProtocol, bytes]:
    client = ClientProtocol(parse_uri("ws://test/"), max_size=None)
    client.send_request(client.connect())
    return client, b"".join(client.data_to_send())


def take_reply(layer: WebSocketLayer) -> bytes:
    reply, layer.reply = layer.reply, b""
    return reply


def opened() -> tuple[ClientProtocol, WebSocketLayer]:
    client, request = client_request()
    layer = WebSocketLayer(1 << 20)
    assert layer.receive(request) == b""
    assert not layer.handshaking
    client.receive_data(take_reply(layer))
    client.events_received()
    return client, layer


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_any_chunking_of_the_stream_gives_the_same_bytes(
    messages: list[bytes], data: st.DataObject
) -> None:
    client, request = client_request()
    for message in messages:
        cut = data.draw(st.integers(0, len(message)))
        # Sending before the answer came: what a client may not do, but only chunking is looked at.
        for opcode, part, fin in (
            (Opcode.BINARY, message[:cut], False),
            (Opcode.CONT, message[cut:], True),
        ):
            request += Frame(opcode, part, fin).serialize(mask=True)
    layer = WebSocketLayer(1 << 20)
    got = b""
    while request:
        size = data.draw(st.integers(1, len(request)))
        got += layer.receive(request[:size])
        request = request[size:]
    assert got == b"".join(messages)
    client.receive_data(take_reply(layer))
    assert client.handshake_exc is None


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_outgoing_frames_are_read_by_the_library(size: int, text: bool) -> None:
    client, layer = opened()
    frames = [b"a" * size, b"b"]
    client.receive_data(layer.wrap(frames, text=text))
    events = client.events_received()
    assert [bytes(event.data) for event in events if isinstance(event, Frame)] == frames
    opcode = Opcode.TEXT if text else Opcode.BINARY
    assert all(isinstance(event, Frame) and event.opcode is opcode for event in events)


def test_farewell_is_a_normal_close() -> None:
    client, layer = opened()
    client.receive_data(layer.farewell())
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 1000


def test_garbage_behind_the_request_is_the_client_s_fault() -> None:
    _, request = client_request()
    with pytest.raises(RemoteProtocolError, match="no frame"):
        WebSocketLayer(100).receive(request + b"\xff\xff\xff\xff\xff\xff\xff\xff")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=5), st.booleans())
def test_garbage_never_raises_anything_but_a_protocol_error(
    chunks: list[bytes], after_handshake: bool
) -> None:
    layer = opened()[1] if after_handshake else WebSocketLayer(1000)
    for chunk in chunks:
        try:
            layer.receive(chunk)
        except RemoteProtocolError:
            break
        if layer.ended:
            break
