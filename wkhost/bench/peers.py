"""Logged-in users: the connections that a load is made of."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import time

from wkhost.bench.errors import BenchError
from wkhost.errors import ReasonCode, RemoteProtocolError
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Connack, Packet
from wkhost.types import ChannelType

LOGIN_TIMEOUT_S = 20.0


class Fate:
    """One message on its way: when it was due, and what SENDACK and RECVs have told of it."""

    __slots__ = ("acked", "due", "left", "message_id", "message_seq")

    def __init__(self, due: float, left: int) -> None:
        self.due = due
        self.left = left
        """Deliveries that are still missing."""
        self.acked = False
        self.message_id = 0
        """0 until the first of SENDACK and RECV names it."""
        self.message_seq = 0

    def agrees(self, message_id: int, message_seq: int) -> bool:
        """Note the numbers of the message; False if they were told otherwise before."""
        if not self.message_id:
            self.message_id, self.message_seq = message_id, message_seq
            return True
        return self.message_id == message_id and self.message_seq == message_seq


class Peer:
    """One connection, and its flow: what it sends, to one channel, numbered from 1."""

    __slots__ = (
        "channel_id",
        "channel_type",
        "conn",
        "index",
        "inflight",
        "last_number",
        "last_seq",
        "number",
        "open",
        "receivers",
        "sock",
        "unsent",
    )

    def __init__(self, index: int, conn: ClientConnection, sock: socket.socket) -> None:
        self.index = index
        self.conn = conn
        self.sock = sock
        self.unsent = b""
        # As a sender. `receivers` 0: it only receives.
        self.channel_id = ""
        self.channel_type = int(ChannelType.PERSON)
        self.receivers = 0
        self.number = 0
        self.inflight = 0
        self.open: dict[int, Fate] = {}
        # As a receiver; each receives from one channel only.
        self.last_number: dict[int, int] = {}
        self.last_seq = 0

    def sends_to(self, channel_id: str, channel_type: int, receivers: int) -> None:
        self.channel_id = channel_id
        self.channel_type = int(channel_type)
        self.receivers = receivers


@contextmanager
def logged_in(
    uids: Sequence[str], address: tuple[str, int], tell: Callable[[float], None]
) -> Iterator[list[Peer]]:
    """Give one connection per uid, each logged in over TCP with encryption; closed at the end.

    `tell` hears the share done. Raises BenchError.
    """
    peers: list[Peer] = []
    try:
        for index, uid in enumerate(uids):
            conn = ClientConnection(uid, device_id=f"bench-{index}")
            peers.append(Peer(index, conn, _login(conn, address)))
            tell((index + 1) / len(uids))
        yield peers
    finally:
        for peer in peers:
            peer.sock.close()


def _login(conn: ClientConnection, address: tuple[str, int]) -> socket.socket:
    """Return the socket of a new login, not blocking. Raises BenchError."""
    sock = connected(address)
    try:
        sock.sendall(conn.connect(int(time() * 1000)))
        packets: list[Packet] = []
        while not packets:
            data = sock.recv(4096)
            if not data:
                raise BenchError(f"{conn.uid}: the server closed the connection during the login")
            packets = conn.receive(data)
        check_connack(conn.uid, packets)
        sock.setblocking(False)
    except (OSError, RemoteProtocolError) as error:
        sock.close()
        raise BenchError(f"{conn.uid}: the login failed: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def connected(address: tuple[str, int]) -> socket.socket:
    """Return a blocking socket, connected. Raises BenchError."""
    try:
        sock = socket.create_connection(address, LOGIN_TIMEOUT_S)
    except OSError as error:
        raise BenchError(f"cannot connect to {address[0]}:{address[1]}: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def check_connack(uid: str, packets: Sequence[Packet]) -> None:
    """Raise BenchError unless the first packet accepts the login."""
    first = packets[0]
    if not isinstance(first, Connack):
        raise BenchError(f"{uid}: expected CONNACK, got {type(first).__name__}")
    if first.reason_code != ReasonCode.SUCCESS:
        raise BenchError(
            f"{uid}: the login was refused with reason {first.reason_code} "
            f"(a load needs users that may log in without a token)"
        )
