"""Golden bytes from official clients (tests/vectors/vectors.json), read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.protocol_pair import make_server
from wkhost.errors import RemoteProtocolError
from wkhost.protocol import codec
from wkhost.protocol.connection import ServerConnection
from wkhost.protocol.crypto import KeyPair, PayloadCipher, parse_public_key
from wkhost.protocol.framing import decode_length, encode_length, next_frame
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Event,
    Packet,
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
from wkhost.types import person_channel_id

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "vectors.json").read_text()
)
CRYPTO = VECTORS["crypto"]
FRAMES: dict[str, dict[str, Any]] = {v["name"]: v for v in VECTORS["vectors"]}
SALT = CRYPTO["salt"]

TYPES: dict[str, type[Any]] = {
    "CONNECT": Connect,
    "CONNACK": Connack,
    "SEND": Send,
    "SENDACK": Sendack,
    "RECV": Recv,
    "RECVACK": Recvack,
    "PING": Ping,
    "PONG": Pong,
    "DISCONNECT": Disconnect,
    "SUB": Sub,
    "SUBACK": Suback,
    "EVENT": Event,
}
FLAG_BITS = {"no_persist": 1, "red_dot": 2, "sync_once": 4, "dup": 8}
NOT_KEPT = {"msg_key", "has_server_version", "stream_flag", "stream_id"}
"""Fields of vectors that are checked or skipped while decoding and not kept in packets."""


def cipher() -> PayloadCipher:
    return PayloadCipher(CRYPTO["aes_key_ascii"].encode(), SALT.encode())


def packet_of(vector: dict[str, Any]) -> Packet:
    """Build the packet that a vector describes."""
    kind = TYPES[vector["packet_type"]]
    fields = dict(vector["packet"])
    flags = sum(bit * fields.pop(name, 0) for name, bit in FLAG_BITS.items())
    for name in NOT_KEPT:
        fields.pop(name, None)
    if kind is Recv:
        fields.pop("stream_no", None)
    if "flags" in kind.__struct_fields__:
        fields["flags"] = flags
    for name in ("payload", "data"):
        if name in fields:
            fields[name] = fields[name].encode()
    packet: Packet = kind(**fields)
    return packet


def encode(packet: Packet, version: int) -> bytes:
    match packet:
        case Connect():
            return codec.encode_connect(packet)
        case Connack():
            return codec.encode_connack(packet, version)
        case Send():
            return codec.encode_send(packet, version, cipher())
        case Sendack():
            return codec.encode_sendack(packet)
        case Recv():
            return RecvFrames(packet).seal(version, cipher())
        case Recvack():
            return codec.encode_recvack(packet)
        case Ping():
            return b"\x70"
        case Pong():
            return b"\x80"
        case Disconnect():
            return codec.encode_disconnect(packet)
        case Sub():
            return codec.encode_sub(packet)
        case Suback():
            return codec.encode_suback(packet)
        case Event():
            return codec.encode_event(packet)


@pytest.mark.parametrize("name", FRAMES)
def test_every_golden_frame_decodes_to_its_fields(name: str) -> None:
    vector = FRAMES[name]
    data = bytes.fromhex(vector["hex"])
    bounds = next_frame(data, 0, 1 << 20)
    assert bounds is not None
    assert bounds[1] == len(data) == vector["length"]
    packet = codec.decode(data, *bounds, data[0], vector["protocol_version"], cipher())
    assert packet == packet_of(vector)


# Never written on purpose: RECV stream fields and the no-encrypt bit (both break clients).
WRITTEN_OTHERWISE = {"recv_v4_stream_fields", "recv_v5_no_encrypt"}


@pytest.mark.parametrize("name", sorted(FRAMES.keys() - WRITTEN_OTHERWISE))
def test_every_golden_frame_is_written_byte_for_byte(name: str) -> None:
    vector = FRAMES[name]
    assert encode(packet_of(vector), vector["protocol_version"]).hex() == vector["hex"]


def test_recv_below_version_5_has_no_stream_bit_and_no_stream_fields() -> None:
    recv = packet_of(FRAMES["recv_v4_stream_fields"])
    assert isinstance(recv, Recv)
    recv.setting |= 0x04
    plain = packet_of(FRAMES["recv_v2_person_encrypted"])
    assert isinstance(plain, Recv)
    assert RecvFrames(recv).seal(4, cipher()) == RecvFrames(plain).seal(4, cipher())
    at_5 = RecvFrames(recv).seal(5, cipher())
    assert at_5.hex() == FRAMES["recv_v5_stream_bit_no_fields"]["hex"]


def test_recv_to_an_encrypted_connection_never_has_the_no_encrypt_bit() -> None:
    recv = packet_of(FRAMES["recv_v5_no_encrypt"])
    assert isinstance(recv, Recv)
    frames = RecvFrames(recv)
    assert frames.seal(5, cipher()).hex() == FRAMES["recv_v5_person_encrypted"]["hex"]
    assert frames.plain(5).hex() == FRAMES["recv_v5_no_encrypt"]["hex"]


@pytest.mark.parametrize("row", VECTORS["remaining_length"])
def test_remaining_lengths(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["hex"])
    assert encode_length(row["value"]) == data
    assert decode_length(data, 0, 1 << 30) == (row["value"], len(data))


@pytest.mark.parametrize("row", VECTORS["person_channel"])
def test_person_channel_ids(row: dict[str, Any]) -> None:
    assert person_channel_id(row["a"], row["b"]) == row["channel_id"]


def test_key_agreement_of_both_sides() -> None:
    client = KeyPair(bytes.fromhex(CRYPTO["client_private_seed_hex"]))
    server = KeyPair(bytes.fromhex(CRYPTO["server_private_hex"]))
    assert client.public_base64 == CRYPTO["client_key_base64"]
    assert server.public_base64 == CRYPTO["server_key_base64"]
    for own, peer in ((client, server), (server, client)):
        key = own.aes_key(parse_public_key(peer.public_base64))
        assert key == CRYPTO["aes_key_ascii"].encode()


@pytest.mark.parametrize(
    ("plain", "wire"),
    [
        (CRYPTO["payload_plain"], CRYPTO["payload_cipher_base64"]),
        ("", CRYPTO["empty_plain_cipher_base64"]),
        (CRYPTO["sixteen_byte_plain"], CRYPTO["sixteen_byte_cipher_base64"]),
    ],
)
def test_payload_cipher(plain: str, wire: str) -> None:
    box = cipher()
    for _ in range(3):  # the contexts are kept between messages
        assert box.encrypt(plain.encode()) == wire.encode()
        assert box.decrypt(wire.encode()) == plain.encode()


def accepted() -> ServerConnection:
    """A connection that logged in with the vectors' keys."""
    server = make_server()
    server.receive(bytes.fromhex(FRAMES["connect_v5_web"]["hex"]))
    pair = KeyPair(bytes.fromhex(CRYPTO["server_private_hex"]))
    stamp = FRAMES["connect_v5_web"]["packet"]["client_timestamp"]
    connack = server.accept(stamp + 37, pair=pair, salt=SALT)
    assert connack.hex() == FRAMES["connack_v5_success"]["hex"]
    return server


def test_a_batch_of_client_frames_in_one_read() -> None:
    batch = VECTORS["concatenated"][0]
    packets = accepted().receive(bytes.fromhex(batch["hex"]))
    assert packets == [packet_of(FRAMES[name]) for name in batch["frames"]]


def test_a_batch_of_server_frames_is_what_the_connection_writes() -> None:
    batch = VECTORS["concatenated"][1]
    server = accepted()
    out = b""
    for name in batch["frames"]:
        packet = packet_of(FRAMES[name])
        if isinstance(packet, Sendack):
            out += server.sendack(packet)
        elif isinstance(packet, Recv):
            out += server.recv_frame(RecvFrames(packet))
        else:
            out += server.pong()
    assert out.hex() == batch["hex"]


@pytest.mark.parametrize("name", ["connack_v5_auth_fail", "connack_v2_auth_fail"])
def test_a_refusal_has_empty_keys_and_the_right_version_gates(name: str) -> None:
    server = make_server()
    connect = FRAMES["connect_v2_web" if "v2" in name else "connect_v5_web"]
    server.receive(bytes.fromhex(connect["hex"]))
    assert server.refuse(2).hex() == FRAMES[name]["hex"]


@pytest.mark.parametrize("data", ["ffffffff", "ffffff80", "81808001", "8180c000"])
def test_lengths_above_the_limit_are_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_length(bytes.fromhex(data), 0, 1 << 20)
