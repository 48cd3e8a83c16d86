"""The state machine of one client connection: bytes and the time in, packets and bytes out.

States: NEW (sniffing, waiting for CONNECT) -> WAITING (CONNECT handed out, later bytes held) ->
OPEN (accepted) -> CLOSED (refused, faulty or left). No sockets, no clock, no logging.

Source: wire protocol, sections 1 to 4.1.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import msgspec

from wkhost.errors import LocalProtocolError, ReasonCode, RemoteProtocolError
from wkhost.protocol import codec, jsonrpc_answers
from wkhost.protocol.crypto import KeyPair, PayloadCipher, make_salt
from wkhost.protocol.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    DISCONNECT,
    LATEST_VERSION,
    PING,
    PONG,
    PONG_FRAME,
    RECVACK,
    SEND,
    SUB,
    decode_length,
    effective_version,
    too_short,
    unknown_type,
)
from wkhost.protocol.jsonrpc_session import JsonRpcSession
from wkhost.protocol.login import (
    MAX_UNAUTHENTICATED_BYTES,
    check_client_key,
    check_identity,
    cut_connect,
    reason_name,
    time_diff,
)
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Event,
    Packet,
    Ping,
    Recvack,
    Sendack,
    Suback,
)
from wkhost.protocol.proxy import NO_HEADER, parse_proxy_header
from wkhost.protocol.recv_frames import RecvFrames

EVENT_VERSION: Final = 5
"""Older clients stumble over EVENT frames, so they get none."""

_SPACE = b" \t\r\n"
_PING = Ping()


class Form(Enum):
    BINARY = auto()
    JSONRPC = auto()


class State(Enum):
    NEW = auto()
    WAITING = auto()
    OPEN = auto()
    CLOSED = auto()


class ServerConnection:
    """The server's side of one client connection, of either form.

    `encryption` is the server-wide switch for binary connections. `node_id` (at most 1023) goes
    into CONNACK. `max_frame_bytes` (at least 127) limits one frame's body or one JSON object.

    A reader calls `receive` for what it read. The packets it gives are Connect (once, first), then,
    once accepted, Send, Recvack, Ping, Disconnect and Sub; answer Ping with `pong` and Sub with
    `suback`, in order, and close on Disconnect. After each `receive` and `held`, `take_replies`
    gives what the connection has to say by itself (JSON-RPC errors). Methods that return bytes give
    exactly one frame, or b"" where the client cannot be told.
    """

    __slots__ = (
        "_cipher",
        "_client_key",
        "_encryption",
        "_jsonrpc_allowed",
        "_max_frame_bytes",
        "_need",
        "_node_id",
        "_packets",
        "_pending",
        "_proxy_done",
        "_rpc",
        "connect",
        "form",
        "proxy_address",
        "state",
        "uid",
        "version",
    )

    def __init__(
        self,
        *,
        encryption: bool,
        jsonrpc_allowed: bool,
        node_id: int,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        proxy_allowed: bool = True,
    ) -> None:
        self._encryption = encryption
        self._jsonrpc_allowed = jsonrpc_allowed
        self._node_id = node_id
        self._max_frame_bytes = max_frame_bytes
        self._proxy_done = not proxy_allowed
        self._cipher: PayloadCipher | None = None
        self._client_key = b""
        self._rpc: JsonRpcSession | None = None
        self._pending = bytearray()
        self._need = 0
        self._packets: list[Packet] = []
        self.state = State.NEW
        self.form: Form | None = None
        """None until the first frame's first byte is known."""
        self.version = LATEST_VERSION
        """What is spoken: the smaller of the client's version and ours."""
        self.connect: Connect | None = None
        """The CONNECT packet; without its token and client_key once the verdict is known."""
        self.uid = ""
        self.proxy_address: tuple[str, int] | None = None
        """(host, port) from a PROXY header."""

    # Bytes in

    def receive(self, data: bytes) -> list[Packet]:
        """Take what was read and return the packets that are complete now.

        Raises RemoteProtocolError (close; `take` has the packets before the fault) or Refused
        (`refuse` with its code, then close). In CLOSED all input is ignored.
        """
        state = self.state
        if state is State.OPEN:
            if self._rpc is not None:
                self._rpc.stream.feed(data)
                return self._decode_objects(self._rpc)
            if self._pending:
                self._pending += data
                if len(self._pending) < self._need:
                    return []
                data = bytes(self._pending)
                self._pending.clear()
            return self._decode_frames(data)
        if state is State.CLOSED:
            return []
        try:
            return self._receive_login(data)
        except RemoteProtocolError:
            self.state = State.CLOSED
            raise

    def held(self) -> list[Packet]:
        """After `accept`: the packets that came behind CONNECT. Raises like `receive`."""
        if self.state is not State.OPEN:
            return []
        if self._rpc is not None:
            return self._decode_objects(self._rpc)
        data = bytes(self._pending)
        self._pending.clear()
        return self._decode_frames(data)

    def take(self) -> list[Packet]:
        """After RemoteProtocolError: the good packets before the fault. Empties the list."""
        packets, self._packets = self._packets, []
        return packets

    def take_replies(self) -> list[bytes]:
        """Frames that the connection itself answers with: errors of JSON-RPC requests."""
        rpc = self._rpc
        if rpc is None or not rpc.replies:
            return []
        replies, rpc.replies = rpc.replies, []
        return replies

    def _receive_login(self, data: bytes) -> list[Packet]:
        if self._rpc is not None:
            self._rpc.stream.feed(data)
            pending_bytes = self._rpc.stream.pending_bytes
        else:
            self._pending += data
            pending_bytes = len(self._pending)
        if pending_bytes > MAX_UNAUTHENTICATED_BYTES:
            raise RemoteProtocolError(
                f"more than {MAX_UNAUTHENTICATED_BYTES} bytes before the login is decided"
            )
        if self.state is State.WAITING or not self._sniff():
            return []
        connect = (
            self._rpc.next_connect()
            if self._rpc is not None
            else cut_connect(self._pending, self._max_frame_bytes)
        )
        if connect is None:
            return []
        self.state = State.WAITING
        self._check_connect(connect)
        return [connect]

    def _sniff(self) -> bool:
        """Find the form from the first byte behind a PROXY header and space; True once known."""
        if self.form is not None:
            return True
        pending = self._pending
        if not self._proxy_done:
            header = parse_proxy_header(bytes(pending))
            if header is None:
                return False
            self._proxy_done = header is not NO_HEADER
            self.proxy_address = header.address
            del pending[: header.size]
        start = pending.lstrip(_SPACE)[:1]
        if not start:
            return False
        if start != b"{":
            self.form = Form.BINARY
            return True
        if not self._jsonrpc_allowed:
            raise RemoteProtocolError("JSON-RPC is switched off")
        self.form = Form.JSONRPC
        self._rpc = JsonRpcSession(self._max_frame_bytes)
        self._rpc.stream.feed(bytes(pending))
        pending.clear()
        return True

    def _check_connect(self, connect: Connect) -> None:
        self.connect = connect
        self.uid = connect.uid
        self.version = effective_version(connect.version)
        check_identity(connect)
        if self._encryption and self.form is Form.BINARY:
            self._client_key = check_client_key(connect)

    def _decode_frames(self, buf: bytes) -> list[Packet]:
        """Decode the whole frames of `buf` and keep the rest."""
        packets: list[Packet] = []
        try:
            pos = self._walk_frames(buf, packets)
        except RemoteProtocolError:
            self._packets = packets
            self.state = State.CLOSED
            raise
        if pos < len(buf):
            self._pending += buf[pos:]
        return packets

    def _walk_frames(self, buf: bytes, packets: list[Packet]) -> int:
        """Append the packets of `buf`; return where the first incomplete frame starts.

        Frames of types that clients do not send, and a second CONNECT, are skipped.
        """
        pos, size = 0, len(buf)
        append = packets.append
        version, cipher = self.version, self._cipher
        max_frame_bytes = self._max_frame_bytes
        while pos < size:
            first = buf[pos]
            kind = first >> 4
            if kind == PING:
                append(_PING)
                pos += 1
                continue
            if kind == PONG:
                pos += 1
                continue
            if not 0 < kind < 13:
                raise unknown_type(kind)
            start = pos + 2
            if start > size:
                self._need = 2
                return pos
            length = buf[pos + 1]
            if length > 0x7F:
                header = decode_length(buf, pos + 1, max_frame_bytes)
                if header is None:
                    self._need = size - pos + 1
                    return pos
                length, start = header
            end = start + length
            if end > size:
                self._need = end - pos
                return pos
            pos = end
            if kind == SEND:
                append(codec.decode_send(buf, start, end, first & 15, version, cipher))
            elif kind == RECVACK:
                if length < codec.RECVACK_BYTES:
                    raise too_short(RECVACK)
                message_id, message_seq = codec.unpack_recvack(buf, start)
                append(Recvack(message_id, message_seq, first & 15))
            elif kind == SUB:
                append(codec.decode_sub(buf, start, end))
            elif kind == DISCONNECT:
                append(codec.decode_disconnect(buf, start, end))
                self.state = State.CLOSED
                return size
        return pos

    def _decode_objects(self, rpc: JsonRpcSession) -> list[Packet]:
        packets: list[Packet] = []
        try:
            rpc.decode_into(packets)
        except RemoteProtocolError:
            self._packets = packets
            self.state = State.CLOSED
            raise
        if packets and isinstance(packets[-1], Disconnect):
            self.state = State.CLOSED
        return packets

    # Bytes out

    def accept(self, now_ms: int, *, pair: KeyPair | None = None, salt: str | None = None) -> bytes:
        """Grant the login: agree keys and return CONNACK. `held` has what came meanwhile.

        `now_ms` is the wall clock; `pair` and `salt` are fresh unless given.
        """
        connect = self._decide(State.OPEN)
        connack = Connack(
            ReasonCode.SUCCESS,
            time_diff(now_ms, connect.client_timestamp),
            server_version=self.version,
            node_id=self._node_id,
        )
        if self._rpc is not None:
            return self._rpc.connack(connack)
        if self._encryption:
            pair = pair or KeyPair()
            connack.server_key = pair.public_base64
            connack.salt = salt or make_salt()
            key = pair.aes_key(self._client_key)
            self._cipher = PayloadCipher(key, connack.salt.encode())
            self._client_key = b""
        return codec.encode_connack(connack, self.version)

    def refuse(self, reason_code: int, text: str = "") -> bytes:
        """Refuse the login for good: CONNACK with empty keys, or a JSON-RPC error. Then close."""
        self._decide(State.CLOSED)
        if self._rpc is not None:
            return self._rpc.refuse(reason_code, text or reason_name(reason_code))
        connack = Connack(reason_code, server_version=self.version, node_id=self._node_id)
        return codec.encode_connack(connack, self.version)

    def _decide(self, state: State) -> Connect:
        connect = self.connect
        if connect is None or self.state is not State.WAITING:
            raise LocalProtocolError(f"no login waits for a verdict in state {self.state.name}")
        self.state = state
        self.connect = msgspec.structs.replace(connect, token="", client_key="")
        return connect

    def sendack(self, packet: Sendack) -> bytes:
        """The answer of one SEND."""
        if self._rpc is None:
            return codec.encode_sendack(packet)
        return self._rpc.sendack(packet)

    def recv_frame(self, frames: RecvFrames) -> bytes:
        """One message for this connection, which must be accepted."""
        cipher = self._cipher
        if cipher is not None:
            return frames.seal(self.version, cipher)
        if self._rpc is not None:
            return frames.jsonrpc
        if self._encryption:
            raise LocalProtocolError("RECV before the login is accepted: there is no key yet")
        return frames.plain(self.version)

    def pong(self) -> bytes:
        """The answer of the oldest Ping that has none yet."""
        return PONG_FRAME if self._rpc is None else self._rpc.pong()

    def suback(self, packet: Suback) -> bytes:
        """The answer of the oldest Sub that has none yet."""
        return codec.encode_suback(packet) if self._rpc is None else self._rpc.suback(packet)

    def disconnect(self, reason_code: int, reason: str = "") -> bytes:
        """Tell the client to leave and not to come back."""
        packet = Disconnect(reason_code, reason)
        if self._rpc is None:
            return codec.encode_disconnect(packet)
        return jsonrpc_answers.encode_disconnect(packet)

    def event(self, event: Event) -> bytes:
        """A server event; b"" for a client that is too old for events."""
        if self.version < EVENT_VERSION:
            return b""
        if self._rpc is None:
            return codec.encode_event(event)
        return jsonrpc_answers.encode_event(event)
