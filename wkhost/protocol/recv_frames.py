"""One RECV for many connections: what does not depend on the connection is computed once.

Source: wire protocol, RECV and its sign string. A binary frame is

    head (first byte, length, setting, length of msg_key) | msg_key | middle | wire payload

and only msg_key and wire payload differ between connections. JSON-RPC text is the same for all.
"""

from __future__ import annotations

import struct

from wkhost.errors import LocalProtocolError
from wkhost.protocol.crypto import MSG_KEY_BYTES, PADDING, PayloadCipher
from wkhost.protocol.framing import RECV, U16, U32, encode_length, encode_string
from wkhost.protocol.jsonrpc_answers import encode_recv as encode_jsonrpc_recv
from wkhost.protocol.packets import Recv
from wkhost.types import Setting

_IDS = struct.Struct(">qIi")
# Bit 2 was the stream bit of old libraries: clients that know it would look for stream fields.
_NEVER = 0x04
_NEVER_BEFORE_5 = _NEVER | int(Setting.STREAM)
_TOPIC = int(Setting.TOPIC)
_NO_ENCRYPT = int(Setting.NO_ENCRYPT)


class RecvFrames:
    """The frames of one `Recv` view.

    `seal` and `plain` give binary frames, `jsonrpc` the text; each is prepared at first use.
    Raises LocalProtocolError if a value does not fit the wire.
    """

    __slots__ = ("_jsonrpc", "_padded", "_plain", "_sealed", "_sign_head", "_sign_pad", "recv")

    def __init__(self, recv: Recv) -> None:
        self.recv = recv
        self._jsonrpc: bytes | None = None
        self._padded = b""
        self._sign_head = b""
        self._sign_pad = b""
        self._sealed: list[tuple[bytes, bytes] | None] = [None] * 6
        self._plain: list[bytes | None] = [None] * 6

    @property
    def jsonrpc(self) -> bytes:
        """The `recv` notification."""
        text = self._jsonrpc
        if text is None:
            text = self._jsonrpc = encode_jsonrpc_recv(self.recv)
        return text

    def plain(self, version: int) -> bytes:
        """The frame for a connection without encryption."""
        data = self._plain[version]
        if data is None:
            recv = self.recv
            middle = self._middle(version)
            head = self._head(version, recv.setting, b"\0\0", len(middle) + len(recv.payload))
            data = self._plain[version] = head + middle + recv.payload
        return data

    def seal(self, version: int, cipher: PayloadCipher) -> bytes:
        """The frame for one connection: payload encrypted, then signed, with its cipher."""
        parts = self._sealed[version] or self._prepare(version)
        wire = cipher.encrypt_padded(self._padded)
        msg_key = cipher.sign_padded(self._sign_head + wire + self._sign_pad)
        return parts[0] + msg_key + parts[1] + wire

    def _prepare(self, version: int) -> tuple[bytes, bytes]:
        recv = self.recv
        payload = recv.payload
        padded = payload + PADDING[16 - (len(payload) & 15)]
        wire_bytes = (len(padded) + 2) // 3 * 4
        middle = self._middle(version)
        head = self._head(
            version,
            recv.setting & ~_NO_ENCRYPT,
            U16.pack(MSG_KEY_BYTES),
            MSG_KEY_BYTES + len(middle) + wire_bytes,
        )
        self._padded = padded
        self._sign_head = sign_head(recv)
        self._sign_pad = PADDING[16 - ((len(self._sign_head) + wire_bytes) & 15)]
        parts = self._sealed[version] = head, middle
        return parts

    def _head(self, version: int, setting: int, msg_key_length: bytes, rest_bytes: int) -> bytes:
        setting &= ~(_NEVER if version >= 5 else _NEVER_BEFORE_5)
        body_bytes = 1 + len(msg_key_length) + rest_bytes
        try:
            return (
                bytes((RECV << 4 | self.recv.flags & 15,))
                + encode_length(body_bytes)
                + bytes((setting,))
                + msg_key_length
            )
        except ValueError as e:
            raise LocalProtocolError(f"RECV: setting: {e}") from e

    def _middle(self, version: int) -> bytes:
        """The fields between msg_key and payload."""
        recv = self.recv
        try:
            return b"".join(
                (
                    encode_string(recv.from_uid),
                    encode_string(recv.channel_id),
                    bytes((recv.channel_type,)),
                    U32.pack(recv.expire) if version >= 3 else b"",
                    encode_string(recv.client_msg_no),
                    _IDS.pack(recv.message_id, recv.message_seq, recv.timestamp),
                    encode_string(recv.topic) if recv.setting & _TOPIC else b"",
                )
            )
        except (struct.error, ValueError) as e:
            raise LocalProtocolError(f"RECV {recv.message_id}: {e}") from e


def sign_head(recv: Recv) -> bytes:
    """The sign string of `recv` up to the wire payload."""
    return (
        f"{recv.message_id}{recv.message_seq}{recv.client_msg_no}{recv.timestamp}"
        f"{recv.from_uid}{recv.channel_id}{int(recv.channel_type)}"
    ).encode()
