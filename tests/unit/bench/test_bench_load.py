"""The load generator finds every broken promise of a server, each under its own name."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from wkhost.bench.load import Load, Pace
from wkhost.bench.peers import Peer
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Packet, Recv, Recvack, Send, Sendack
from wkhost.types import ChannelType

PAYLOAD = b"hello"


class Wires(ClientConnection):
    """Speaks values instead of bytes: what is under test sits above the protocol."""

    def __init__(self, uid: str, server: FakeServer) -> None:
        super().__init__(uid)
        self._server = server

    def send(self, packet: Send) -> bytes:
        self._server.sent(packet)
        return b"s"

    def recvack(self, packet: Recvack) -> bytes:
        self._server.recvacks += 1
        return b"r"

    def receive(self, data: bytes) -> list[Packet]:
        return self._server.due_to(self.uid)


Answers = Callable[[Send, int], tuple[list[Packet], list[Packet]]]
"""From a message and its number: packets to its sender, packets to its receiver."""


class FakeServer:
    """Answers messages of `a` to `b` as told."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._due: dict[str, list[Packet]] = {"a": [], "b": []}
        self.ends: dict[str, socket.socket] = {}
        self.recvacks = 0

    def sent(self, packet: Send) -> None:
        to_sender, to_receiver = self._answers(packet, packet.client_seq)
        for uid, packets in (("b", to_receiver), ("a", to_sender)):
            if packets:
                self._due[uid] += packets
                self.ends[uid].send(b"x")

    def due_to(self, uid: str) -> list[Packet]:
        packets, self._due[uid] = self._due[uid], []
        return packets


@contextmanager
def load_on(answers: Answers) -> Iterator[tuple[Load, FakeServer]]:
    server = FakeServer(answers)
    peers = []
    for index, uid in enumerate(("a", "b")):
        mine, server.ends[uid] = socket.socketpair()
        mine.setblocking(False)
        server.ends[uid].setblocking(False)
        peers.append(Peer(index, Wires(uid, server), mine))
    peers[0].sends_to("b", ChannelType.PERSON, receivers=1)
    load = Load(peers, PAYLOAD, Pace(rate=1000))
    try:
        yield load, server
    finally:
        load.close()
        for peer in peers:
            peer.sock.close()
        for sock in server.ends.values():
            sock.close()


def run(load: Load) -> dict[str, int]:
    load.run(
        warmup_s=0, duration_s=0.05, drain_s=0.05, measure=lambda: None, tell=lambda share: None
    )
    found: dict[str, int] = load.tally.violations.found()
    return found


def ack(send: Send, number: int, reason: int = 1) -> Sendack:
    return Sendack(send.client_seq, 1000 + number, number, reason)


def recv(send: Send, number: int, payload: bytes = PAYLOAD, seq: int = 0) -> Recv:
    return Recv(1000 + number, seq or number, 0, "a", "a", 1, send.client_msg_no, payload)


def test_a_server_that_keeps_its_promises_is_found_without_fault() -> None:
    with load_on(lambda send, n: ([ack(send, n)], [recv(send, n)])) as (load, server):
        assert run(load) == {}
        tally = load.tally
        assert tally.sent > 0
        assert tally.sent == len(tally.ack_s) == len(tally.delivery_s)
        assert server.recvacks == tally.reasons[1] >= tally.sent


def _late(send: Send, number: int) -> tuple[list[Packet], list[Packet]]:
    """Message 2 comes after message 3."""
    if number == 2:
        _late.kept = recv(send, 2)  # type: ignore[attr-defined]
        return [ack(send, 2)], []
    extra = [_late.kept] if number == 3 else []  # type: ignore[attr-defined]
    return [ack(send, number)], [recv(send, number), *extra]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (lambda send, n: ([ack(send, n)], [] if n == 2 else [recv(send, n)]), "missing_deliveries"),
        (lambda send, n: ([] if n == 2 else [ack(send, n)], [recv(send, n)]), "missing_sendacks"),
        (
            lambda send, n: ([ack(send, n)] * (2 if n == 2 else 1), [recv(send, n)]),
            "unexpected_sendacks",
        ),
        (
            lambda send, n: ([ack(send, n)], [recv(send, n)] * (2 if n == 2 else 1)),
            "duplicate_deliveries",
        ),
        (_late, "disordered_deliveries"),
        (
            lambda send, n: ([ack(send, n)], [recv(send, n, seq=1 if n == 2 else n)]),
            "message_seq_not_ascending",
        ),
        (
            lambda send, n: ([ack(send, n, 13 if n == 2 else 1)], [recv(send, n)]),
            "unexpected_deliveries",
        ),
        (
            lambda send, n: ([ack(send, n + (n == 2))], [recv(send, n)]),
            "ids_disagree",
        ),
        (
            lambda send, n: ([ack(send, n)], [recv(send, n, b"x" if n == 2 else PAYLOAD)]),
            "payload_changed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_broken_promise_is_found(answers: Answers, found: str) -> None:
    with load_on(answers) as (load, _):
        violations = run(load)
        assert violations.pop(found) == 1
        # What follows from it may be counted too, but nothing else.
        assert set(violations) <= {"ids_disagree", "missing_deliveries"}
