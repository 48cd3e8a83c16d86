"""One encode and one decode per binary packet, for protocol versions 1 to 5.

Source: wire protocol, Binary protocol. Everything is big-endian; a string is a u16 length and
UTF-8 bytes. Where a packet carries a payload, a `PayloadCipher` may be given: it encrypts and signs
on the way out, verifies and decrypts on the way in. Encoders raise LocalProtocolError for values
that do not fit the wire, decoders RemoteProtocolError for bytes that are no packet.
"""

from __future__ import annotations

import struct

from wkhost.errors import LocalProtocolError, RemoteProtocolError
from wkhost.protocol.crypto import MSG_KEY_BYTES, PayloadCipher
from wkhost.protocol.framing import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    EVENT,
    I64,
    RECV,
    RECVACK,
    SEND,
    SENDACK,
    SUB,
    SUBACK,
    U16,
    U32,
    U64,
    Body,
    decode_utf8,
    encode_string,
    frame,
    too_short,
    unknown_type,
)
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
from wkhost.types import MAX_STRING_BYTES, Setting

HAS_SERVER_VERSION = 0x01
"""CONNACK's flag bit: server_version is present."""

_STREAM, _TOPIC, _NO_ENCRYPT = int(Setting.STREAM), int(Setting.TOPIC), int(Setting.NO_ENCRYPT)

_CONNECT_HEAD = struct.Struct(">BB")
_CONNACK_HEAD = struct.Struct(">qB")
_SEND_HEAD = struct.Struct(">BIH")
_TYPE_LEN = struct.Struct(">BH")
_TYPE_EXPIRE_LEN = struct.Struct(">BIH")
_TYPE_EXPIRE = struct.Struct(">BI")
_SENDACK_FRAME = struct.Struct(">BBqIIB")
_RECVACK_FRAME = struct.Struct(">BBqI")
_RECV_IDS = struct.Struct(">qIi")
_TWO_BYTES = struct.Struct(">BB")
unpack_recvack = struct.Struct(">qI").unpack_from
RECVACK_BYTES = 12


# What clients send


def encode_connect(packet: Connect) -> bytes:
    try:
        head = _CONNECT_HEAD.pack(packet.version, packet.device_flag)
        stamp = I64.pack(packet.client_timestamp)
    except struct.error as e:
        raise LocalProtocolError(f"CONNECT: {e}") from e
    strings = map(encode_string, (packet.device_id, packet.uid, packet.token))
    return frame(CONNECT << 4, head + b"".join(strings) + stamp + encode_string(packet.client_key))


def decode_connect(buf: bytes, pos: int, end: int) -> Connect:
    body = Body(buf, pos, end, CONNECT)
    version = body.byte()
    device_flag = body.byte()
    device_id = body.string()
    uid = body.string()
    token = body.string()
    return Connect(version, device_flag, device_id, uid, token, body.number(I64), body.string())


def encode_send(packet: Send, version: int, cipher: PayloadCipher | None) -> bytes:
    """Encode a SEND; with a cipher and without the no-encrypt bit it is encrypted and signed."""
    if packet.payload is None:
        raise LocalProtocolError("SEND: there is no payload")
    setting = packet.setting
    no = encode_string(packet.client_msg_no)
    channel = encode_string(packet.channel_id)
    wire, msg_key = packet.payload, b"\x00\x00"
    if cipher is not None and not setting & _NO_ENCRYPT:
        wire = cipher.encrypt(wire)
        sign = b"%d%b%b%d%b" % (
            packet.client_seq,
            no[2:],
            channel[2:],
            packet.channel_type,
            wire,
        )
        msg_key = U16.pack(MSG_KEY_BYTES) + cipher.sign(sign)
    try:
        head = struct.pack(">BI", setting, packet.client_seq)
        tail = (
            _TYPE_EXPIRE.pack(packet.channel_type, packet.expire)
            if version >= 3
            else bytes((packet.channel_type,))
        )
    except (struct.error, ValueError) as e:
        raise LocalProtocolError(f"SEND: {e}") from e
    stream = encode_string(packet.stream_no) if 2 <= version < 5 and setting & _STREAM else b""
    topic = encode_string(packet.topic) if setting & _TOPIC else b""
    body = b"".join((head, no, stream, channel, tail, msg_key, topic, wire))
    return frame(SEND << 4 | packet.flags & 15, body)


def decode_send(
    buf: bytes, pos: int, end: int, flags: int, version: int, cipher: PayloadCipher | None
) -> Send:
    """Decode, verify and decrypt one SEND.

    `payload` is None where msg_key, base64, cipher blocks or padding are wrong. All reads go
    forward, so one comparison with `end` at the last of them finds a body that is too short.
    """
    try:
        setting, client_seq, n = _SEND_HEAD.unpack_from(buf, pos)
        pos += 7
        no = buf[pos : pos + n]
        pos += n
        lengths = n
        stream_no = b""
        if setting & _STREAM and 2 <= version < 5:
            (n,) = U16.unpack_from(buf, pos)
            pos += 2
            stream_no = buf[pos : pos + n]
            pos += n
            lengths |= n
        (n,) = U16.unpack_from(buf, pos)
        pos += 2
        channel = buf[pos : pos + n]
        pos += n
        lengths |= n
        expire = 0
        if version >= 3:
            channel_type, expire, n = _TYPE_EXPIRE_LEN.unpack_from(buf, pos)
            pos += 7
        else:
            channel_type, n = _TYPE_LEN.unpack_from(buf, pos)
            pos += 3
        msg_key = buf[pos : pos + n]
        pos += n
        lengths |= n
        topic = ""
        if setting & _TOPIC:
            (n,) = U16.unpack_from(buf, pos)
            pos += 2
            topic = buf[pos : pos + n].decode()
            pos += n
            lengths |= n
        if pos > end:
            raise too_short(SEND)
        if lengths > MAX_STRING_BYTES:
            raise RemoteProtocolError(f"a SEND holds a string above {MAX_STRING_BYTES} bytes")
        payload: bytes | None = buf[pos:end]
        if cipher is not None and not setting & _NO_ENCRYPT:
            sign_head = b"%d%b%b%d" % (client_seq, no, channel, channel_type)
            payload = cipher.open(sign_head, buf[pos:end], msg_key)
        return Send(
            client_seq,
            no.decode(),
            channel.decode(),
            channel_type,
            payload,
            flags,
            setting,
            expire,
            topic,
            stream_no.decode() if stream_no else "",
        )
    except struct.error as e:
        raise too_short(SEND) from e
    except UnicodeDecodeError as e:
        raise RemoteProtocolError(f"a string of a SEND is not UTF-8: {e.reason}") from e


def encode_recvack(packet: Recvack) -> bytes:
    try:
        return _RECVACK_FRAME.pack(
            RECVACK << 4 | packet.flags & 15, RECVACK_BYTES, packet.message_id, packet.message_seq
        )
    except struct.error as e:
        raise LocalProtocolError(f"RECVACK: {e}") from e


def decode_recvack(buf: bytes, pos: int, end: int, flags: int) -> Recvack:
    if end - pos < RECVACK_BYTES:
        raise too_short(RECVACK)
    message_id, message_seq = unpack_recvack(buf, pos)
    return Recvack(message_id, message_seq, flags)


def encode_sub(packet: Sub) -> bytes:
    try:
        middle = _TWO_BYTES.pack(packet.channel_type, packet.action)
        setting = bytes((packet.setting,))
    except (struct.error, ValueError) as e:
        raise LocalProtocolError(f"SUB: {e}") from e
    names = encode_string(packet.sub_no) + encode_string(packet.channel_id)
    return frame(SUB << 4, setting + names + middle + encode_string(packet.param))


def decode_sub(buf: bytes, pos: int, end: int) -> Sub:
    body = Body(buf, pos, end, SUB)
    setting = body.byte()
    sub_no, channel_id = body.string(), body.string()
    channel_type, action = body.byte(), body.byte()
    return Sub(sub_no, channel_id, channel_type, action, body.string(), setting)


# What servers send


def encode_connack(packet: Connack, version: int) -> bytes:
    """Encode a CONNACK; from version 4 on it carries server_version and node_id."""
    try:
        head = _CONNACK_HEAD.pack(packet.time_diff, packet.reason_code)
        keys = encode_string(packet.server_key) + encode_string(packet.salt)
        if version < 4:
            return frame(CONNACK << 4, head + keys)
        body = bytes((packet.server_version,)) + head + keys + U64.pack(packet.node_id)
    except (struct.error, ValueError) as e:
        raise LocalProtocolError(f"CONNACK: {e}") from e
    return frame(CONNACK << 4 | HAS_SERVER_VERSION, body)


def decode_connack(buf: bytes, pos: int, end: int, flags: int) -> Connack:
    """Decode a CONNACK. Its own server_version tells whether node_id follows."""
    body = Body(buf, pos, end, CONNACK)
    server_version = body.byte() if flags & HAS_SERVER_VERSION else 0
    time_diff, reason_code = body.number(I64), body.byte()
    server_key, salt = body.string(), body.string()
    node_id = body.number(U64) if server_version >= 4 else 0
    return Connack(reason_code, time_diff, server_key, salt, server_version, node_id)


def encode_sendack(packet: Sendack) -> bytes:
    try:
        return _SENDACK_FRAME.pack(
            SENDACK << 4 | packet.flags & 15,
            17,
            packet.message_id,
            packet.client_seq,
            packet.message_seq,
            packet.reason_code,
        )
    except struct.error as e:
        raise LocalProtocolError(f"SENDACK: {e}") from e


def decode_sendack(buf: bytes, pos: int, end: int, flags: int) -> Sendack:
    if end - pos < 17:
        raise too_short(SENDACK)
    message_id, client_seq, message_seq, reason_code = struct.unpack_from(">qIIB", buf, pos)
    return Sendack(client_seq, message_id, message_seq, reason_code, flags)


def decode_recv(
    buf: bytes, pos: int, end: int, flags: int, version: int, cipher: PayloadCipher | None
) -> Recv:
    """Decode, verify and decrypt a RECV as a client does; stream fields are skipped.

    Raises RemoteProtocolError also for a wrong msg_key or cipher text.
    """
    body = Body(buf, pos, end, RECV)
    setting, msg_key = body.byte(), body.raw_string()
    from_uid, channel_id, channel_type = body.raw_string(), body.raw_string(), body.byte()
    expire = body.number(U32) if version >= 3 else 0
    no = body.raw_string()
    if setting & _STREAM and 2 <= version < 5:
        body.byte()
        body.raw_string()
        body.number(U64)
    message_id, message_seq, timestamp = _RECV_IDS.unpack_from(buf, body.skip(_RECV_IDS.size))
    topic = body.string() if setting & _TOPIC else ""
    payload: bytes | None = body.rest()
    if cipher is not None and not setting & _NO_ENCRYPT:
        parts = (message_id, message_seq, no, timestamp, from_uid, channel_id, channel_type)
        payload = cipher.open(b"%d%d%b%d%b%b%d" % parts, body.rest(), msg_key)
    if payload is None:
        raise RemoteProtocolError(f"RECV {message_id} does not match its msg_key")
    return Recv(
        message_id=message_id,
        message_seq=message_seq,
        timestamp=timestamp,
        from_uid=decode_utf8(from_uid),
        channel_id=decode_utf8(channel_id),
        channel_type=channel_type,
        client_msg_no=decode_utf8(no),
        payload=payload,
        flags=flags,
        setting=setting,
        expire=expire,
        topic=topic,
    )


def encode_disconnect(packet: Disconnect) -> bytes:
    try:
        code = bytes((packet.reason_code,))
    except ValueError as e:
        raise LocalProtocolError(f"DISCONNECT: {e}") from e
    return frame(DISCONNECT << 4, code + encode_string(packet.reason))


def decode_disconnect(buf: bytes, pos: int, end: int) -> Disconnect:
    body = Body(buf, pos, end, DISCONNECT)
    return Disconnect(body.byte(), body.string())


def encode_suback(packet: Suback) -> bytes:
    try:
        tail = bytes((packet.channel_type, packet.action, packet.reason_code))
    except ValueError as e:
        raise LocalProtocolError(f"SUBACK: {e}") from e
    return frame(
        SUBACK << 4, encode_string(packet.sub_no) + encode_string(packet.channel_id) + tail
    )


def decode_suback(buf: bytes, pos: int, end: int) -> Suback:
    body = Body(buf, pos, end, SUBACK)
    return Suback(body.string(), body.string(), body.byte(), body.byte(), body.byte())


def encode_event(packet: Event) -> bytes:
    try:
        stamp = I64.pack(packet.timestamp)
    except struct.error as e:
        raise LocalProtocolError(f"EVENT: {e}") from e
    names = encode_string(packet.id) + encode_string(packet.type)
    return frame(EVENT << 4, names + stamp + packet.data)


def decode_event(buf: bytes, pos: int, end: int) -> Event:
    body = Body(buf, pos, end, EVENT)
    return Event(body.string(), body.string(), body.number(I64), body.rest())


def decode(
    buf: bytes, pos: int, end: int, first_byte: int, version: int, cipher: PayloadCipher | None
) -> Packet:
    """Decode the body at `pos`..`end` of a frame that starts with `first_byte`."""
    kind, flags = first_byte >> 4, first_byte & 15
    match kind:
        case 1:
            return decode_connect(buf, pos, end)
        case 2:
            return decode_connack(buf, pos, end, flags)
        case 3:
            return decode_send(buf, pos, end, flags, version, cipher)
        case 4:
            return decode_sendack(buf, pos, end, flags)
        case 5:
            return decode_recv(buf, pos, end, flags, version, cipher)
        case 6:
            return decode_recvack(buf, pos, end, flags)
        case 7:
            return Ping()
        case 8:
            return Pong()
        case 9:
            return decode_disconnect(buf, pos, end)
        case 10:
            return decode_sub(buf, pos, end)
        case 11:
            return decode_suback(buf, pos, end)
        case 12:
            return decode_event(buf, pos, end)
        case _:
            raise unknown_type(kind)
