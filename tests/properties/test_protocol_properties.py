"""What holds for every packet, every chunking and any garbage."""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tests.kit.protocol_pair import NOW_MS, logged_in, make_server
from wkhost.errors import Refused, RemoteProtocolError
from wkhost.protocol import codec
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form, ServerConnection, State
from wkhost.protocol.crypto import KeyPair, PayloadCipher
from wkhost.protocol.framing import decode_length, encode_length, next_frame
from wkhost.protocol.json_stream import JsonStream
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Event,
    Packet,
    Recv,
    Recvack,
    Send,
    Sendack,
    Sub,
    Suback,
)
from wkhost.protocol.recv_frames import RecvFrames
from wkhost.types import Setting

U8 = st.integers(0, 0xFF)
U32 = st.integers(0, 0xFFFFFFFF)
I64 = st.integers(-(2**63), 2**63 - 1)
FLAGS = st.integers(0, 15)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VERSIONS = st.integers(1, 5)
PAYLOADS = st.binary(max_size=200)
FORMS = st.sampled_from(list(Form))

CONNECTS = st.builds(Connect, U8, U8, TEXT, TEXT, TEXT, I64, TEXT)
SENDS = st.builds(Send, U32, TEXT, TEXT, U8, PAYLOADS, FLAGS, U8, U32, TEXT, TEXT)
SENDACKS = st.builds(Sendack, U32, I64, U32, U8, FLAGS)
RECVS = st.builds(
    Recv,
    I64,
    U32,
    st.integers(-(2**31), 2**31 - 1),
    TEXT,
    TEXT,
    U8,
    TEXT,
    PAYLOADS,
    FLAGS,
    U8,
    U32,
    TEXT,
)
RECVACKS = st.builds(Recvack, I64, U32, FLAGS)
DISCONNECTS = st.builds(Disconnect, U8, TEXT)
SUBS = st.builds(Sub, TEXT, TEXT, U8, U8, TEXT, U8)
SUBACKS = st.builds(Suback, TEXT, TEXT, U8, U8, U8)
EVENTS = st.builds(Event, TEXT, TEXT, I64, PAYLOADS)


def make_cipher() -> PayloadCipher:
    return PayloadCipher(b"4989ad64ccaf943d", b"aZ3kQ9mT5xW1rB7c")


def decode(data: bytes, version: int, cipher: PayloadCipher | None = None) -> Packet:
    bounds = next_frame(data, 0, 1 << 20)
    assert bounds is not None
    assert bounds[1] == len(data)
    return codec.decode(data, *bounds, data[0], version, cipher)


@given(st.integers(0, 0x0FFFFFFF))
def test_remaining_lengths_round_trip(n: int) -> None:
    data = encode_length(n)
    assert decode_length(data, 0, n) == (n, len(data))
    assert all(decode_length(data[:i], 0, n) is None for i in range(len(data)))


@given(CONNECTS)
def test_connect_round_trips(packet: Connect) -> None:
    assert decode(codec.encode_connect(packet), 5) == packet


@given(st.builds(Connack, U8, I64, TEXT, TEXT, st.just(0), st.integers(0, 2**64 - 1)), VERSIONS)
def test_connack_round_trips(packet: Connack, version: int) -> None:
    if version >= 4:
        packet.server_version = version
    else:
        packet.node_id = 0
    assert decode(codec.encode_connack(packet, version), version) == packet


@given(SENDS, VERSIONS, st.booleans())
def test_send_round_trips(packet: Send, version: int, encrypted: bool) -> None:
    cipher = make_cipher() if encrypted else None
    if version < 3:
        packet.expire = 0
    if not packet.setting & Setting.TOPIC:
        packet.topic = ""
    if not (packet.setting & Setting.STREAM and 2 <= version < 5):
        packet.stream_no = ""
    assert decode(codec.encode_send(packet, version, cipher), version, cipher) == packet


@given(RECVS, VERSIONS, st.booleans())
def test_recv_round_trips_without_what_must_not_be_sent(
    packet: Recv, version: int, encrypted: bool
) -> None:
    frames = RecvFrames(packet)
    cipher = make_cipher() if encrypted else None
    data = frames.seal(version, cipher) if cipher else frames.plain(version)
    if version < 3:
        packet.expire = 0
    if not packet.setting & Setting.TOPIC:
        packet.topic = ""
    packet.setting &= ~0x04
    if version < 5:
        packet.setting &= ~Setting.STREAM
    if encrypted:
        packet.setting &= ~Setting.NO_ENCRYPT
    assert decode(data, version, cipher) == packet


@given(st.one_of(SENDACKS, RECVACKS, DISCONNECTS, SUBS, SUBACKS, EVENTS), VERSIONS)
def test_the_other_packets_round_trip(packet: Packet, version: int) -> None:
    encoders: dict[type, Callable[..., bytes]] = {
        Sendack: codec.encode_sendack,
        Recvack: codec.encode_recvack,
        Disconnect: codec.encode_disconnect,
        Sub: codec.encode_sub,
        Suback: codec.encode_suback,
        Event: codec.encode_event,
    }
    assert decode(encoders[type(packet)](packet), version) == packet


@given(RECVS, st.sampled_from(Form))
def test_one_recv_view_serves_every_connection(packet: Recv, form: Form) -> None:
    packet.message_id &= 2**63 - 1
    packet.setting &= Setting.RECEIPT | Setting.TOPIC
    packet.topic = packet.topic if packet.setting & Setting.TOPIC else ""
    frames = RecvFrames(packet)
    for version in (5, 3, 1, 5):
        server, client = logged_in(form, version=version)
        for _ in range(2):
            (got,) = client.receive(server.recv_frame(frames))
            assert isinstance(got, Recv)
            assert (got.payload, got.from_uid, got.topic) == (
                packet.payload,
                packet.from_uid,
                packet.topic,
            )


@given(st.lists(PAYLOADS, min_size=1, max_size=5))
def test_a_kept_cipher_context_gives_what_a_fresh_one_gives(payloads: list[bytes]) -> None:
    kept = make_cipher()
    for payload in payloads:
        wire = kept.encrypt(payload)
        assert wire == make_cipher().encrypt(payload)
        assert kept.decrypt(wire) == payload
        assert kept.sign(wire) == make_cipher().sign(wire)


@given(st.binary(max_size=64).filter(lambda b: len(b) % 16 == 0))
def test_wrong_cipher_text_does_not_disturb_the_next(data: bytes) -> None:
    cipher = make_cipher()
    wire = cipher.encrypt(b"good")
    with suppress(ValueError):
        cipher.decrypt(b2a_base64(data, newline=False))
    assert cipher.decrypt(wire) == b"good"


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(points)]


def traffic(client: ClientConnection, kinds: list[int]) -> bytes:
    """Frames of a logged-in client, one per number."""
    out = b""
    for i, kind in enumerate(kinds):
        match kind % 5:
            case 0:
                out += client.ping()
            case 1:
                out += client.recvack(Recvack(i, kind, kind & 15))
            case 2:
                out += client.subscribe(Sub(f'{{"{i}\\', "ü}", 7, i & 1))
            case _:
                send = Send(i, f"n{i}", '}"', 2, b"x" * (kind * 3), setting=Setting.TOPIC)
                send.topic = '\\"{'
                out += client.send(send)
    return out


@given(
    FORMS,
    st.lists(st.integers(0, 200), max_size=8),
    st.lists(st.integers(0, 1 << 16), max_size=12),
    st.booleans(),
)
def test_any_chunking_gives_the_same_packets(
    form: Form, kinds: list[int], cuts: list[int], single_bytes: bool
) -> None:
    server, client = logged_in(form)
    data = traffic(client, kinds)
    whole = server.receive(data)
    assert len(whole) == len(kinds)

    other, _ = logged_in(form)
    if form is Form.BINARY:  # the same keys, so that the same bytes decrypt
        other._cipher = server._cipher
    chunks = [data[i : i + 1] for i in range(len(data))] if single_bytes else chunked(data, cuts)
    packets = [p for chunk in chunks for p in other.receive(chunk)]
    if form is Form.JSONRPC:
        assert [type(p) for p in packets] == [type(p) for p in whole]
    assert packets == whole


@given(FORMS, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_chunking_of_a_login_gives_the_same_packets(form: Form, cuts: list[int]) -> None:
    client = ClientConnection("u1", form=form)
    data = b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r\n" + client.connect(NOW_MS) + client.ping() * 2
    server = make_server()
    logins = [p for chunk in chunked(data, cuts) for p in server.receive(chunk)]
    assert [type(p) for p in logins] == [Connect]
    server.accept(NOW_MS)
    assert len(server.held()) == 2


def feed_garbage(server: ServerConnection, chunks: list[bytes]) -> None:
    """Anything but packets, Refused and RemoteProtocolError fails the test."""
    try:
        for chunk in chunks:
            for packet in server.receive(chunk):
                assert not isinstance(packet, Recv)
            if server.state is State.WAITING:
                server.accept(NOW_MS)
                server.held()
    except RemoteProtocolError:
        assert server.state is State.CLOSED
        server.take()
    except Refused as refused:
        server.refuse(refused.reason_code)
    for reply in server.take_replies():
        json.loads(reply)


BINARY_START = st.sampled_from([b"", b"\x10", b"\x30", b"\x60", b"\x90", b"\xa0", b"\x30\x20"])
JSON_BITS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b'{"method":"send","id":"1","params":',
                b'{"channelId":"c","channelType":1,"payload":',
                b'{"method":"ping"}',
                b'{"',
                b'"}',
                b'"',
                b":",
                b",",
                b"{",
                b"}",
                b"[",
                b"]",
                b"\\",
                b"\\ud800",
                b"null",
                b"1e999",
                b"-",
                b'"id":',
            ]
        ),
        st.binary(max_size=3),
    ),
    max_size=20,
)


@given(st.lists(st.binary(max_size=50), max_size=5))
@example([b"\r\n\r\n\0\r\nQUIT\n"])
def test_garbage_before_login(chunks: list[bytes]) -> None:
    feed_garbage(make_server(), chunks)


@given(FORMS, BINARY_START, st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_after_login(form: Form, start: bytes, chunks: list[bytes]) -> None:
    feed_garbage(logged_in(form)[0], [start, *chunks])


@given(JSON_BITS, st.booleans())
def test_almost_json_after_login(bits: list[bytes], joined: bool) -> None:
    feed_garbage(logged_in(Form.JSONRPC)[0], [b"".join(bits)] if joined else bits)


@given(SENDS, st.integers(0, 500), U8, st.integers(0, 500))
def test_a_damaged_send_is_a_packet_or_an_error(
    packet: Send, where: int, value: int, cut: int
) -> None:
    server, client = logged_in()
    data = bytearray(client.send(packet))
    data[where % len(data)] = value
    feed_garbage(server, [bytes(data[: len(data) - cut % len(data)]), b"\x70" * 200])


CLIENT_GARBAGE = st.lists(st.one_of(st.binary(max_size=60), JSON_BITS.map(b"".join)), max_size=4)


@given(FORMS, CLIENT_GARBAGE)
def test_garbage_to_a_client(form: Form, chunks: list[bytes]) -> None:
    client = ClientConnection("u1", form=form, pair=KeyPair(b"\x01" * 32))
    client.connect(NOW_MS)
    with suppress(RemoteProtocolError):
        for chunk in chunks:
            client.receive(chunk)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=8), JSON_VALUES), max_size=5),
    st.lists(st.integers(0, 1 << 16), max_size=20),
    st.booleans(),
    st.sampled_from(["", " ", "\r\n\t "]),
)
def test_concatenated_objects_are_cut_where_they_end(
    objects: list[dict[str, object]], cuts: list[int], ascii_only: bool, between: str
) -> None:
    texts = [json.dumps(o, ensure_ascii=ascii_only) for o in objects]
    data = between.join(texts).encode("utf-8", "surrogatepass")
    stream = JsonStream(1 << 20)
    got = []
    for chunk in chunked(data, cuts):
        stream.feed(chunk)
        while (text := stream.next()) is not None:
            got.append(text)
    assert got == [t.encode("utf-8", "surrogatepass") for t in texts]
    assert stream.pending_bytes == 0
