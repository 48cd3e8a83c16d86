"""The state machine of one connection."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import pytest

from tests.kit.protocol_pair import NOW_MS, logged_in, make_server
from wkhost.errors import LocalProtocolError, ReasonCode, Refused, RemoteProtocolError
from wkhost.protocol import codec
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form, State
from wkhost.protocol.crypto import KeyPair, PayloadCipher
from wkhost.protocol.framing import encode_length
from wkhost.protocol.login import MAX_UNAUTHENTICATED_BYTES
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Event,
    Ping,
    Pong,
    Recv,
    Recvack,
    Send,
    Sendack,
    Sub,
    Suback,
)
from wkhost.protocol.recv_frames import RecvFrames
from wkhost.types import Setting

KEY = KeyPair().public_base64
RECV = Recv(2**62, 7, 1_700_000_001, "u2", "u2", 1, "no-1", b'{"type":1}', 2)


def connect_packet(**fields: object) -> bytes:
    packet = Connect(5, 1, "d1", "u1", "t", NOW_MS, KEY)
    for name, value in fields.items():
        setattr(packet, name, value)
    return codec.encode_connect(packet)


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_both_sides_understand_each_other(form: Form, version: int) -> None:
    server, client = logged_in(form, version=version)
    assert server.version == client.version == min(version, 5)
    assert server.form is form
    assert client.connack is not None
    assert client.connack.reason_code == 1
    assert client.connack.time_diff == 37
    assert client.connack.node_id == (1001 if version >= 4 or form is Form.JSONRPC else 0)

    expire = 60 if version >= 3 or form is Form.JSONRPC else 0
    send = Send(9, "no-1", "g1", 2, b'{"a":1}', 2, Setting.TOPIC, expire, "news")
    (got,) = server.receive(client.send(send))
    assert isinstance(got, Send)
    assert (got.payload, got.topic, got.expire, got.flags) == (b'{"a":1}', "news", expire, 2)
    sendack = Sendack(got.client_seq, 2**62, 5, 1, 2)
    assert client.receive(server.sendack(sendack)) == [Sendack(9, 2**62, 5, 1, 2)]

    assert client.receive(server.recv_frame(RecvFrames(RECV))) == [RECV]
    recvack = Recvack(2**62, 7, 2)
    assert server.receive(client.recvack(recvack)) == [recvack]

    assert server.receive(client.ping()) == [Ping()]
    assert client.receive(server.pong()) == [Pong()]

    sub = Sub("s1", "d1", 7, 1, "{}")
    assert server.receive(client.subscribe(sub)) == [sub]
    suback = Suback("s1", "d1", 7, 1, 1)
    assert client.receive(server.suback(suback)) == [suback]

    event = Event("e1", "stream.delta", NOW_MS, b'{"x":1}')
    assert client.receive(server.event(event)) == ([event] if version >= 5 else [])
    kick = Disconnect(12, "bye")
    assert client.receive(server.disconnect(12, "bye")) == [kick]
    assert server.receive(client.disconnect(0, "bye")) == [Disconnect(0, "bye")]
    assert server.state is State.CLOSED


@pytest.mark.parametrize("form", list(Form))
def test_packets_behind_connect_come_out_after_accept(form: Form) -> None:
    server = make_server()
    client = ClientConnection("u1", form=form)
    assert len(server.receive(client.connect(NOW_MS) + client.ping())) == 1
    assert server.receive(client.recvack(Recvack(1, 1))) == []
    assert server.held() == []
    server.accept(NOW_MS)
    assert server.held() == [Ping(), Recvack(1, 1)]
    assert server.held() == []


def test_a_fault_behind_connect_shows_after_accept_with_the_packets_before_it() -> None:
    server = make_server()
    server.receive(connect_packet() + b"\x70\xf0\x00")
    server.accept(NOW_MS)
    with pytest.raises(RemoteProtocolError):
        server.held()
    assert server.take() == [Ping()]


@pytest.mark.parametrize("first", ["70", "320100", "620c" + "00" * 12, "00", "f0", "20", "0d"])
def test_a_first_frame_that_is_not_connect_is_refused_at_its_header(first: str) -> None:
    server = make_server()
    with pytest.raises(RemoteProtocolError):
        server.receive(bytes.fromhex(first) + b"\x01")
    assert server.state is State.CLOSED
    assert server.receive(b"\x70") == []


def test_a_second_connect_is_ignored() -> None:
    server, client = logged_in()
    assert server.receive(client.connect(NOW_MS) + client.ping()) == [Ping()]
    rpc_server, rpc_client = logged_in(Form.JSONRPC)
    assert rpc_server.receive(rpc_client.connect(NOW_MS)) == []
    (reply,) = rpc_server.take_replies()
    assert b"-32600" in reply


def test_frames_of_the_servers_own_types_are_ignored() -> None:
    server, _ = logged_in()
    own = b"".join(
        (
            codec.encode_connack(Connack(1, server_version=5), 5),
            codec.encode_sendack(Sendack(1, 2, 3, 1)),
            RecvFrames(RECV).plain(5),
            codec.encode_suback(Suback("", "c", 1, 0, 1)),
            codec.encode_event(Event("e", "t", 1, b"")),
            b"\x80",
        )
    )
    assert server.receive(own + b"\x70") == [Ping()]


@pytest.mark.parametrize("uid", ["", "  ", "a@b", "a#b", "a&b"])
def test_forbidden_uids_close_without_an_answer(uid: str) -> None:
    with pytest.raises(RemoteProtocolError):
        make_server().receive(connect_packet(uid=uid))


@pytest.mark.parametrize("fields", [{"uid": "____system"}, {"device_id": "____device"}])
def test_the_systems_own_names_are_refused_with_2(fields: dict[str, str]) -> None:
    server = make_server()
    with pytest.raises(Refused) as caught:
        server.receive(connect_packet(**fields))
    assert caught.value.reason_code == ReasonCode.AUTH_FAIL
    (connack,) = ClientConnection("x").receive(server.refuse(caught.value.reason_code))
    assert connack == Connack(2, server_version=5, node_id=1001)


LOW_ORDER = [
    "0" * 64,
    "01" + "0" * 62,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("top_bit", [0, 0x80])
def test_low_order_client_keys_are_refused_with_21(point: str, top_bit: int) -> None:
    raw = bytearray.fromhex(point)
    raw[31] |= top_bit
    with pytest.raises(ValueError, match=r"(?i)shared"):  # the library agrees that it is one
        KeyPair().aes_key(bytes(raw))
    with pytest.raises(Refused) as caught:
        make_server().receive(connect_packet(client_key=b64encode(raw).decode()))
    assert caught.value.reason_code == ReasonCode.CLIENT_KEY_IS_EMPTY


@pytest.mark.parametrize("key", ["", "AAAA", KEY[:-1], KEY + "\n", "é" * 44, "!" * 44])
def test_missing_or_malformed_client_keys_are_refused_with_21(key: str) -> None:
    server = make_server()
    with pytest.raises(Refused) as caught:
        server.receive(connect_packet(client_key=key))
    assert caught.value.reason_code == ReasonCode.CLIENT_KEY_IS_EMPTY
    assert server.refuse(21)
    assert server.state is State.CLOSED


def test_without_encryption_no_key_is_needed_and_payloads_are_plain() -> None:
    server = make_server(encryption=False)
    server.receive(connect_packet(client_key=""))
    connack = server.accept(NOW_MS)
    assert ClientConnection("x").receive(connack) == [Connack(1, 0, server_version=5, node_id=1001)]
    frame = server.recv_frame(RecvFrames(RECV))
    assert frame.endswith(RECV.payload)
    send = Send(1, "n", "u2", 1, b"plain")
    assert server.receive(codec.encode_send(send, 5, None)) == [send]


def _client_cipher(client: ClientConnection) -> PayloadCipher:
    cipher = client._cipher
    assert cipher is not None
    return cipher


def _forge(client: ClientConnection, wire: bytes, msg_key: bytes | None = None) -> bytes:
    """A SEND with this wire payload, signed rightly unless a msg_key is given."""
    key = _client_cipher(client).sign(b"1" + b"n" + b"u2" + b"1" + wire)
    key = key if msg_key is None else msg_key
    body = b"\0" + b"\0\0\0\1" + b"\0\1n" + b"\0\2u2" + b"\1" + b"\0\0\0\0"
    body += len(key).to_bytes(2, "big") + key + wire
    return b"\x30" + encode_length(len(body)) + body


@pytest.mark.parametrize(
    "wire",
    [b"", b"AAAA", b"not base64!", b"A" * 24, b"A" * 22 + b"==", b"\xff" * 24],
    ids=["empty", "no block", "no base64", "18 bytes", "bad padding", "no ascii"],
)
def test_a_payload_that_cannot_be_decrypted_is_none_and_the_connection_stays(wire: bytes) -> None:
    server, client = logged_in()
    good = Send(1, "n", "u2", 1, b"x")
    packets = server.receive(_forge(client, wire) + client.send(good))
    assert [p.payload for p in packets if isinstance(p, Send)] == [None, b"x"]


def test_a_wrong_msg_key_is_none() -> None:
    server, client = logged_in()
    wire = _client_cipher(client).encrypt(b"x")
    for msg_key in (b"", b"0" * 32, b"\xff" * 32):
        (packet,) = server.receive(_forge(client, wire, msg_key))
        assert isinstance(packet, Send)
        assert packet.payload is None
    (packet,) = server.receive(_forge(client, wire))
    assert isinstance(packet, Send)
    assert packet.payload == b"x"


def test_a_send_with_the_no_encrypt_bit_is_taken_as_it_is() -> None:
    server, client = logged_in()
    send = Send(1, "n", "u2", 1, b"plain", setting=Setting.NO_ENCRYPT)
    assert server.receive(client.send(send)) == [send]


@pytest.mark.parametrize(
    "bad",
    [
        "00",
        "d0",
        "e000",
        "ff",
        "30ffffffff",  # more than 4 length bytes
        "30818040",  # 1 MiB and 1, refused before the body comes
        "620b" + "00" * 11,
        "3003000000",
        "90020c00",
        "a00100",
        "300b00000000010000ffff0000",  # a string above 32767 bytes
        "300b0000000001000000ffff00",
        "90040c0001ff",  # not UTF-8
    ],
)
@pytest.mark.parametrize("behind", [b"", b"\x70" * 70_000], ids=["alone", "more behind"])
def test_bad_frames_are_refused_and_the_packets_before_them_kept(bad: str, behind: bytes) -> None:
    server, _ = logged_in()
    with pytest.raises(RemoteProtocolError):
        server.receive(b"\x70" + bytes.fromhex(bad) + behind)
    assert server.take() == [Ping()]
    assert server.take() == []
    assert server.state is State.CLOSED
    assert server.receive(b"\x70") == []


@pytest.mark.parametrize("encryption", [True, False])
@pytest.mark.parametrize("field", ["client_msg_no", "channel_id", "msg_key", "topic"])
def test_a_send_with_a_string_above_the_limit_is_refused(field: str, encryption: bool) -> None:
    def body(n: int) -> bytes:
        sizes = {name: n if name == field else 1 for name in ("client_msg_no", "channel_id")}
        out = b"\x08\0\0\0\1"
        for size in sizes.values():
            out += size.to_bytes(2, "big") + b"x" * size
        out += b"\1\0\0\0\0"
        for name in ("msg_key", "topic"):
            size = n if name == field else 1
            out += size.to_bytes(2, "big") + b"x" * size
        return out

    server, _ = logged_in(encryption=encryption)
    longest = body(32767)
    assert len(server.receive(b"\x30" + encode_length(len(longest)) + longest)) == 1
    too_long = body(32768)
    with pytest.raises(RemoteProtocolError):
        server.receive(b"\x30" + encode_length(len(too_long)) + too_long)


def test_extra_bytes_behind_a_body_without_payload_are_ignored() -> None:
    server, _ = logged_in()
    assert server.receive(b"\x60\x0e" + b"\0" * 14 + b"\x70") == [Recvack(0, 0), Ping()]


def test_input_behind_disconnect_is_ignored() -> None:
    server, client = logged_in()
    assert server.receive(client.disconnect() + b"\x70") == [Disconnect(0, "")]
    assert server.receive(b"\x70") == []


def test_before_the_verdict_only_a_bounded_number_of_bytes_is_kept() -> None:
    server = make_server()
    server.receive(connect_packet())
    server.receive(b"\x70" * MAX_UNAUTHENTICATED_BYTES)
    with pytest.raises(RemoteProtocolError):
        server.receive(b"\x70")
    with pytest.raises(RemoteProtocolError):
        make_server().receive(b" " * (MAX_UNAUTHENTICATED_BYTES + 1))
    with pytest.raises(RemoteProtocolError):
        make_server().receive(b"\x10" + encode_length(MAX_UNAUTHENTICATED_BYTES + 1))


def test_a_connection_decides_its_login_once() -> None:
    server, _ = logged_in()
    late: list[Callable[[], object]] = [
        lambda: server.accept(NOW_MS),
        lambda: server.refuse(2),
    ]
    for decide in late:
        with pytest.raises(LocalProtocolError):
            decide()
    with pytest.raises(LocalProtocolError):
        make_server().accept(NOW_MS)


def test_no_plain_message_leaves_before_the_keys_are_agreed() -> None:
    server = make_server()
    server.receive(connect_packet())
    with pytest.raises(LocalProtocolError):
        server.recv_frame(RecvFrames(RECV))


def test_the_token_is_not_kept_after_the_verdict() -> None:
    server = make_server()
    (connect,) = server.receive(connect_packet(token="secret"))
    server.accept(NOW_MS)
    assert isinstance(connect, Connect)
    assert connect.token == "secret"
    assert server.connect is not None
    assert server.connect.token == server.connect.client_key == ""


@pytest.mark.parametrize("stamp", [-(2**63), 2**63 - 1, 0])
def test_any_client_clock_gives_a_connack(stamp: int) -> None:
    server = make_server()
    server.receive(connect_packet(client_timestamp=stamp))
    assert server.accept(NOW_MS)


PROXY_V1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 5100\r\n"
PROXY_V2_HEAD = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_V2 = PROXY_V2_HEAD + bytes.fromhex("2111000ccb0071070a000001c82213ec")
PROXY_V2_6 = (
    PROXY_V2_HEAD
    + bytes.fromhex("21210026")
    + bytes.fromhex("20010db8000000000000000000000001") * 2
    + bytes.fromhex("c82213ec")
    + b"\x04\0"  # an unfinished extension is skipped
)


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("header", "address"),
    [
        (PROXY_V1, ("203.0.113.7", 51234)),
        (b"PROXY TCP6 2001:db8::1 ::1 51234 1\r\n", ("2001:db8::1", 51234)),
        (b"PROXY UNKNOWN\r\n", None),
        (PROXY_V2, ("203.0.113.7", 51234)),
        (PROXY_V2_6, ("2001:db8::1", 51234)),
        (PROXY_V2_HEAD + bytes.fromhex("20000000"), None),
    ],
)
def test_a_proxy_header_may_stand_before_the_first_frame(
    form: Form, at_once: bool, header: bytes, address: tuple[str, int] | None
) -> None:
    server = make_server()
    data = header + ClientConnection("u1", form=form).connect(NOW_MS)
    chunks = [data] if at_once else [data[i : i + 1] for i in range(len(data))]
    packets = [p for chunk in chunks for p in server.receive(chunk)]
    assert len(packets) == 1
    assert server.form is form
    assert server.proxy_address == address


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 nonsense 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 99999 2\r\n",
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY \r\n",
        b"PROXY \xff\r\n",
        b"PROXY " + b"x" * 110,
        PROXY_V2_HEAD + bytes.fromhex("31110000"),
        PROXY_V2_HEAD + bytes.fromhex("21110000"),
        PROXY_V1 + PROXY_V1,
    ],
)
def test_a_malformed_or_second_proxy_header_is_refused(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        make_server().receive(header + connect_packet())


def test_jsonrpc_can_be_switched_off() -> None:
    server = make_server(jsonrpc_allowed=False)
    with pytest.raises(RemoteProtocolError):
        server.receive(b' {"method":"connect"')


def test_values_that_do_not_fit_the_wire_are_our_own_fault() -> None:
    server, client = logged_in()
    long = "x" * 32768
    too_much: list[Callable[[], object]] = [
        lambda: server.sendack(Sendack(2**32, 1, 1, 1)),
        lambda: server.disconnect(256),
        lambda: server.disconnect(12, long),
        lambda: server.event(Event(long, "t", 1, b"")),
        lambda: server.event(Event("e", "t", 2**63, b"")),
        lambda: server.suback(Suback("", "c", 256, 0, 1)),
        lambda: server.recv_frame(RecvFrames(Recv(1, 2**32, 1, "u", "c", 1, "n", b""))),
        lambda: server.recv_frame(RecvFrames(Recv(1, 1, 1, "u", "c", 256, "n", b""))),
        lambda: server.recv_frame(RecvFrames(Recv(1, 1, 1, long, "c", 1, "n", b""))),
        lambda: client.send(Send(2**32, "n", "c", 1, b"")),
        lambda: client.send(Send(1, "n", "c", 1, None)),
        lambda: client.recvack(Recvack(2**63, 1)),
    ]
    for call in too_much:
        with pytest.raises(LocalProtocolError):
            call()
