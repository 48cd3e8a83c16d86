"""The client's side of a connection, sans-IO: what `wkhost demo`, load generators and tests speak.

A mirror of `connection.py` for both forms, with the checks that the official clients make.
"""

from __future__ import annotations

from wkhost.errors import LocalProtocolError, ReasonCode, RemoteProtocolError
from wkhost.protocol import codec
from wkhost.protocol.client_jsonrpc import JsonRpcClient
from wkhost.protocol.connection import Form
from wkhost.protocol.crypto import (
    SALT_CHARS,
    BadKeyError,
    KeyPair,
    PayloadCipher,
    parse_public_key,
)
from wkhost.protocol.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    LATEST_VERSION,
    PING_FRAME,
    next_frame,
)
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Recvack,
    Send,
    Sub,
)


class ClientConnection:
    """One login of `uid` from one device, in the binary form or as JSON-RPC.

    Each method for sending returns the bytes to write. `receive` turns bytes read into Connack,
    Sendack, Recv (verified, decrypted), Pong, Suback, Event and Disconnect packets.
    """

    def __init__(
        self,
        uid: str,
        token: str = "",
        *,
        device_id: str = "wkhost-client",
        device_flag: int = 1,
        version: int = LATEST_VERSION,
        form: Form = Form.BINARY,
        pair: KeyPair | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    ) -> None:
        self.uid = uid
        self.form = form
        self.version = version
        """What is spoken; lowered by CONNACK if the server knows less."""
        self.connack: Connack | None = None
        """The server's verdict, once it came."""
        self._token = token
        self._device_id = device_id
        self._device_flag = device_flag
        self._max_frame_bytes = max_frame_bytes
        self._cipher: PayloadCipher | None = None
        self._pending = b""
        self._rpc = JsonRpcClient(max_frame_bytes) if form is Form.JSONRPC else None
        self._pair = pair or (KeyPair() if form is Form.BINARY else None)

    def connect(self, now_ms: int) -> bytes:
        """Log in; the answer is a Connack packet, also for refusals."""
        packet = Connect(
            version=self.version,
            device_flag=self._device_flag,
            device_id=self._device_id,
            uid=self.uid,
            token=self._token,
            client_timestamp=now_ms,
            client_key=self._pair.public_base64 if self._pair is not None else "",
        )
        return codec.encode_connect(packet) if self._rpc is None else self._rpc.connect(packet)

    def send(self, packet: Send) -> bytes:
        """Send a message; its Sendack has the same client_seq."""
        if self._rpc is not None:
            return self._rpc.send(packet)
        return codec.encode_send(packet, self.version, self._cipher)

    def recvack(self, packet: Recvack) -> bytes:
        """Confirm a Recv; clients copy its flags."""
        return codec.encode_recvack(packet) if self._rpc is None else self._rpc.recvack(packet)

    def ping(self) -> bytes:
        return PING_FRAME if self._rpc is None else self._rpc.ping()

    def subscribe(self, packet: Sub) -> bytes:
        return codec.encode_sub(packet) if self._rpc is None else self._rpc.subscribe(packet)

    def disconnect(self, reason_code: int = 0, reason: str = "") -> bytes:
        packet = Disconnect(reason_code, reason)
        if self._rpc is None:
            return codec.encode_disconnect(packet)
        return self._rpc.disconnect(packet)

    def receive(self, data: bytes) -> list[Packet]:
        """Take what was read. Raises RemoteProtocolError for anything a client would not accept."""
        packets: list[Packet] = []
        if self._rpc is not None:
            for packet in self._rpc.receive(data):
                self._note(packet)
                packets.append(packet)
            return packets
        buf = self._pending + data if self._pending else data
        pos = 0
        while (bounds := next_frame(buf, pos, self._max_frame_bytes)) is not None:
            start, end = bounds
            packet = codec.decode(buf, start, end, buf[pos], self.version, self._cipher)
            self._note(packet)
            packets.append(packet)
            pos = end
        self._pending = buf[pos:]
        return packets

    def _note(self, packet: Packet) -> None:
        """Take version and keys from a Connack."""
        if not isinstance(packet, Connack):
            return
        self.connack = packet
        if packet.server_version:
            self.version = min(self.version, packet.server_version)
        if packet.reason_code != ReasonCode.SUCCESS or not packet.server_key:
            return
        if self._pair is None:
            raise LocalProtocolError("CONNACK carries a server_key but no key pair was made")
        try:
            peer = parse_public_key(packet.server_key)
        except BadKeyError as e:
            raise RemoteProtocolError(f"CONNACK: server_key: {e}") from e
        salt = packet.salt.encode()
        if len(salt) != SALT_CHARS:
            raise RemoteProtocolError(f"CONNACK: salt has {len(salt)} bytes, expected {SALT_CHARS}")
        self._cipher = PayloadCipher(self._pair.aes_key(peer), salt)
