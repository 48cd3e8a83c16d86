"""The state of one JSON-RPC connection: which answer belongs to which request id."""

from __future__ import annotations

from wkhost.errors import LocalProtocolError, RemoteProtocolError
from wkhost.protocol import jsonrpc, jsonrpc_answers
from wkhost.protocol.json_stream import JsonStream
from wkhost.protocol.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Ping,
    Send,
    Sendack,
    Sub,
    Suback,
)


class JsonRpcSession:
    """Turns objects into packets and packets into answers.

    A `send` gets a client_seq from a counter of this connection, and `sendack` finds the request by
    it. Pings and subscriptions are answered in the order they came. `replies` collects what the
    session itself has to say: errors for requests that cannot be served.
    """

    __slots__ = ("_client_seq", "_connect_id", "_pings", "_sends", "_subs", "replies", "stream")

    def __init__(self, max_bytes: int) -> None:
        self.stream = JsonStream(max_bytes)
        self.replies: list[bytes] = []
        self._client_seq = 0
        self._connect_id = b""
        self._sends: dict[int, bytes] = {}
        self._pings: list[bytes] = []
        self._subs: list[bytes] = []

    def next_connect(self) -> Connect | None:
        """Take the first object, which must be a `connect` with an id; None if incomplete."""
        text = self.stream.next()
        if text is None:
            return None
        try:
            request = jsonrpc.parse_request(text)
            if request.method != "connect" or not request.id:
                raise RemoteProtocolError("JSON-RPC: the first request must be connect, with an id")
            connect = jsonrpc.decode_connect(request)
        except jsonrpc.RpcError as e:
            raise RemoteProtocolError(f"JSON-RPC: connect: {e.message}") from e
        self._connect_id = request.id
        return connect

    def decode_into(self, packets: list[Packet]) -> None:
        """Append the packets of all whole objects.

        Stops behind a Disconnect. Raises RemoteProtocolError for text that is no request; an error
        answer for it is among the replies, to be written before closing.
        """
        while True:
            try:
                text = self.stream.next()
                if text is None:
                    return
                request = jsonrpc.parse_request(text)
                if request.method == "connect":
                    raise jsonrpc.RpcError(
                        jsonrpc.INVALID_REQUEST, "connect: already connected", request.id
                    )
                packet = jsonrpc.decode_request(request, self._client_seq + 1)
            except jsonrpc.RpcError as e:
                if e.id:
                    self.replies.append(jsonrpc_answers.error(e.id, e.code, e.message))
                continue
            except RemoteProtocolError as e:
                self.replies.append(jsonrpc_answers.error(b"", jsonrpc.PARSE_ERROR, str(e)))
                raise
            packets.append(packet)
            match packet:
                case Send():
                    self._client_seq += 1
                    self._sends[self._client_seq] = request.id
                case Ping():
                    self._pings.append(request.id)
                case Sub():
                    self._subs.append(request.id)
                case Disconnect():
                    return

    def connack(self, packet: Connack) -> bytes:
        return jsonrpc_answers.encode_connack(packet, self._connect_id)

    def refuse(self, reason_code: int, text: str) -> bytes:
        return jsonrpc_answers.error(self._connect_id, reason_code, text)

    def sendack(self, packet: Sendack) -> bytes:
        """Raises LocalProtocolError for a SEND that is unknown or answered already."""
        id_text = self._sends.pop(packet.client_seq, None)
        if id_text is None:
            raise LocalProtocolError(f"SENDACK: no send with client_seq {packet.client_seq} waits")
        return jsonrpc_answers.encode_sendack(packet, id_text)

    def pong(self) -> bytes:
        if not self._pings:
            raise LocalProtocolError("PONG: no ping waits")
        return jsonrpc_answers.answer(self._pings.pop(0), {})

    def suback(self, packet: Suback) -> bytes:
        if not self._subs:
            raise LocalProtocolError("SUBACK: no subscribe waits")
        return jsonrpc_answers.encode_suback(packet, self._subs.pop(0))
