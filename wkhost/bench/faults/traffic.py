"""Steady traffic through the guard, by both doors, each message followed to its end.

Theory of operation. Messages are due on a fixed grid; every one carries a word that the guard masks
or, one in ten, a word that it refuses, so that each message alone tells whether it was moderated.
Most go over client connections in pairs of users, some over the HTTP API, where a user waits for
each answer. What is not answered when the server dies is sent again, under the same number, once
the traffic runs again.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex

import httpx
import msgspec
import trio

from wkhost.bench.errors import BenchError
from wkhost.bench.faults.guard import FORBIDDEN, MASKED
from wkhost.bench.peers import check_connack
from wkhost.bench.server import Server
from wkhost.errors import ReasonCode, RemoteProtocolError
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Packet, Recv, Recvack, Send, Sendack
from wkhost.types import ChannelType

SETTLE_S = 8.0
"""How long answers to the last messages may take."""
FORBIDDEN_EVERY = 10
_PAIRS = 8
_HTTP_USERS = 4
_READ_BYTES = 64 * 1024
_HTTP_TIMEOUT_S = 15.0
_SUCCESS = int(ReasonCode.SUCCESS)


class Fate(msgspec.Struct):
    """One message and what became of it; times in seconds, monotonic. `reason` 0: unanswered."""

    number: int
    uid: str
    peer: str
    forbidden: bool
    payload: bytes
    due: float
    http: bool = False
    answered_at: float = 0.0
    reason: int = 0
    message_id: int = 0

    @property
    def name(self) -> str:
        return f"{self.uid}-{self.number:06}"


class Delivery(msgspec.Struct):
    """One RECV as it came; `life` counts the logins of its reader."""

    to_uid: str
    life: int
    message_id: int
    number: int
    payload: bytes


class User:
    """One user with one connection (or, where it sends over HTTP, none)."""

    def __init__(self, uid: str, peer: str = "", *, http: bool = False) -> None:
        self.uid = uid
        self.peer = peer
        """Whom it writes to; empty for one who only reads."""
        self.http = http
        self.number = 0
        self.life = 0
        self.waiting: dict[int, Fate] = {}
        self.conn = ClientConnection(uid)
        self._stream: trio.SocketStream | None = None
        self._write = trio.Lock()

    async def connect(self, address: tuple[str, int]) -> list[Packet]:
        """Log in; return what came along with the CONNACK. Raises BenchError."""
        self.conn = ClientConnection(self.uid, device_id=f"of-{self.uid}")
        self.life += 1
        try:
            self._stream = await trio.open_tcp_stream(*address)
        except OSError as error:
            raise BenchError(f"{self.uid}: cannot connect: {error}") from error
        self._write = trio.Lock()
        await self.write(self.conn.connect(int(time.time() * 1000)))
        while True:
            packets = await self.read()
            if packets is None:
                raise BenchError(f"{self.uid}: the server closed the connection during the login")
            if packets:
                check_connack(self.uid, packets)
                return packets[1:]

    async def read(self) -> list[Packet] | None:
        """Return what came, None where the connection is lost. Raises BenchError."""
        assert self._stream is not None
        try:
            data = await self._stream.receive_some(_READ_BYTES)
            return self.conn.receive(bytes(data)) if data else None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        except RemoteProtocolError as error:
            raise BenchError(f"{self.uid}: the server broke the protocol: {error}") from error

    async def send(self, fates: list[Fate]) -> None:
        packets = (
            Send(fate.number, fate.name, fate.peer, int(ChannelType.PERSON), fate.payload)
            for fate in fates
        )
        await self.write(b"".join(map(self.conn.send, packets)))

    async def write(self, data: bytes) -> None:
        assert self._stream is not None
        try:
            async with self._write:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader sees the end of the connection too, and tells

    async def close(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


class Traffic:
    """See the module. `rate` messages a second in all, of which `http_share` over HTTP."""

    def __init__(self, rate: float, http_share: float = 0.1) -> None:
        run = token_hex(3)
        self.fates: list[Fate] = []
        """In the order sent."""
        self.deliveries: list[Delivery] = []
        self.senders = [User(f"{run}s{i}", f"{run}r{i}") for i in range(_PAIRS)]
        self._readers = [User(f"{run}r{i}") for i in range(_PAIRS)]
        self._posters = [
            User(f"{run}h{i}", f"{run}r{i}", http=True) for i in range(_HTTP_USERS if rate else 0)
        ]
        self._client_rate = rate * (1 - http_share)
        self._http_rate = rate * http_share
        self._sending = False
        self._lost = 0
        self._moved = trio.Event()

    @asynccontextmanager
    async def running(self, server: Server) -> AsyncIterator[None]:
        """Send for the time of the block, then wait for what is on its way.

        What an earlier block left unanswered is sent first, in its order.
        """
        self._lost = 0
        users = [*self.senders, *self._readers]
        try:
            async with (
                trio.open_nursery() as nursery,
                httpx.AsyncClient(
                    base_url=server.http_url, timeout=_HTTP_TIMEOUT_S, trust_env=False
                ) as http,
            ):
                for user in users:
                    early = await user.connect(server.tcp)
                    nursery.start_soon(self._read, user, early)
                for sender in self.senders:
                    if sender.waiting:
                        await sender.send(list(sender.waiting.values()))
                self._sending = True
                nursery.start_soon(self._pace)
                for index, poster in enumerate(self._posters):
                    nursery.start_soon(self._post_all, http, poster, index)
                yield
                self._sending = False
                with trio.move_on_after(SETTLE_S):
                    await self._settled()
                nursery.cancel_scope.cancel()
        finally:
            self._sending = False
            for user in users:
                await user.close()

    async def send_now(self, count: int, text: str = "") -> list[Fate]:
        """Send `count` more messages at once, one of each sender in turn; return them."""
        fates = []
        for index in range(count):
            sender = self.senders[index % len(self.senders)]
            fate = self._next(sender, time.monotonic(), text)
            await sender.send([fate])
            fates.append(fate)
        return fates

    async def wait_answered(self, fates: list[Fate]) -> None:
        """Return when each has its answer; the deadline is the caller's."""
        while not all(fate.reason for fate in fates):
            await self._moved.wait()

    async def wait_accepted(self, since: float) -> float:
        """Return when the first message that was due after `since` was moderated and accepted."""
        seen = len(self.fates)
        while seen and self.fates[seen - 1].due >= since:
            seen -= 1
        while True:
            found = [
                fate.answered_at
                for fate in self.fates[seen:]
                if fate.due >= since and (fate.reason == _SUCCESS)
            ]
            if found:
                return min(found)
            await self._moved.wait()

    def unanswered(self) -> list[Fate]:
        """Return what is on its way through the server now."""
        return [fate for user in self.senders for fate in user.waiting.values()]

    # --- sending --------------------------------------------------------------------------------

    async def _pace(self) -> None:
        step, due, turn = 1 / self._client_rate, time.monotonic(), 0
        while self._sending:
            now = time.monotonic()
            while due <= now and self._sending:
                sender = self.senders[turn % len(self.senders)]
                await sender.send([self._next(sender, due)])
                turn += 1
                due += step
            await trio.sleep(max(0.0, due - time.monotonic()))

    async def _post_all(self, http: httpx.AsyncClient, user: User, index: int) -> None:
        step = len(self._posters) / self._http_rate
        due = time.monotonic() + step * index / len(self._posters)
        lost = False
        for fate in list(user.waiting.values()):
            lost = lost or not await self._post(http, user, fate)
        while self._sending and not lost:
            await trio.sleep(max(0.0, due - time.monotonic()))
            if self._sending:
                lost = not await self._post(http, user, self._next(user, time.monotonic()))
            due = max(due + step, time.monotonic())

    async def _post(self, http: httpx.AsyncClient, user: User, fate: Fate) -> bool:
        """Send one message; False when the server is gone. Its fate is unknown then."""
        body = {
            "from_uid": user.uid,
            "channel_id": fate.peer,
            "channel_type": int(ChannelType.PERSON),
            "client_msg_no": fate.name,
            "payload": base64.b64encode(fate.payload).decode(),
        }
        try:
            answer = await http.post("/message/send", json=body)
        except httpx.HTTPError:
            return False
        if answer.status_code != httpx.codes.OK:
            return False
        data = answer.json().get("data", answer.json())
        self._answered(user, fate.number, data.get("reason_code", _SUCCESS), data["message_id"])
        return True

    def _next(self, user: User, due: float, text: str = "") -> Fate:
        user.number += 1
        forbidden = user.number % FORBIDDEN_EVERY == 0
        words = f"{FORBIDDEN if forbidden else MASKED} {text} {user.number}"
        payload = json.dumps({"type": 1, "content": words}).encode()
        fate = Fate(user.number, user.uid, user.peer, forbidden, payload, due, user.http)
        user.waiting[fate.number] = fate
        self.fates.append(fate)
        return fate

    # --- hearing --------------------------------------------------------------------------------

    async def _read(self, user: User, packets: list[Packet] | None) -> None:
        while packets is not None:
            received = []
            for packet in packets:
                if isinstance(packet, Sendack):
                    self._answered(user, packet.client_seq, packet.reason_code, packet.message_id)
                elif isinstance(packet, Recv):
                    received.append(packet)
                    self._received(user, packet)
            if received:
                acks = (Recvack(each.message_id, each.message_seq, each.flags) for each in received)
                await user.write(b"".join(map(user.conn.recvack, acks)))
            packets = await user.read()
        self._lost += 1
        self._move()

    def _answered(self, user: User, number: int, reason: int, message_id: int) -> None:
        fate = user.waiting.pop(number, None)
        if fate is None:
            raise BenchError(f"{user.uid}: a second answer to message {number}")
        fate.answered_at, fate.reason, fate.message_id = time.monotonic(), reason, message_id
        self._move()

    def _received(self, user: User, packet: Recv) -> None:
        number = int(packet.client_msg_no.rpartition("-")[2])
        self.deliveries.append(
            Delivery(
                user.uid + packet.from_uid, user.life, packet.message_id, number, packet.payload
            )
        )

    async def _settled(self) -> None:
        everybody = len(self.senders) + len(self._readers)
        while self._lost < everybody and any(
            user.waiting for user in (*self.senders, *self._posters)
        ):
            await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
