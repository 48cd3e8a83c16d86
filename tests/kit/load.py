"""A small load for tests: pairs of clients, every message followed to its end.

Each sender writes to a person chat of its own and, when asked, in turn to a group shared by all.
What was sent, acknowledged and delivered stays known over restarts of the server, so a test can
compare it with the history at the end. One message is one `Fate`; nothing is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from tests.kit.server import ServerProcess
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Connack, Packet, Recv, Recvack, Send, Sendack

PERSON, GROUP = 1, 2
GROUP_ID = "load"
SUCCESS = 1
READ_BYTES = 65536
PAGE = 1000


class Fate(msgspec.Struct):
    """One message: what was sent and what became of it. Times are seconds, monotonic."""

    number: int
    from_uid: str
    channel_id: str
    channel_type: int
    client_msg_no: str
    payload: bytes
    due: float
    acked_at: float = 0.0
    reason: int = 0
    message_id: int = 0
    message_seq: int = 0

    @property
    def channel(self) -> tuple[str, int]:
        """The chat; a person chat is named by both, as only its sender writes to it."""
        if self.channel_type == PERSON:
            return f"{self.from_uid}>{self.channel_id}", PERSON
        return self.channel_id, self.channel_type


class Delivery(msgspec.Struct):
    """One RECV as it came."""

    to_uid: str
    channel: tuple[str, int]
    message_id: int
    message_seq: int
    at: float


class Party:
    """One user with one connection."""

    def __init__(self, uid: str, peer: str = "") -> None:
        self.uid = uid
        self.peer = peer
        """Whom it writes to; empty for one who only reads."""
        self.waiting: dict[int, Fate] = {}
        """Sent and not acknowledged, in the order sent."""
        self.number = 0
        self._conn = ClientConnection(uid)
        self._stream: trio.SocketStream | None = None
        self._write = trio.Lock()

    async def connect(self, address: tuple[str, int]) -> list[Packet]:
        """Log in; returns packets that came along with the CONNACK."""
        self._conn = ClientConnection(self.uid, device_id=f"device-of-{self.uid}")
        self._stream = await trio.open_tcp_stream(*address)
        self._write = trio.Lock()
        await self.write(self._conn.connect(int(time.time() * 1000)))
        while True:
            packets = await self.read()
            assert packets is not None, f"{self.uid}: closed before CONNACK"
            if packets:
                assert isinstance(packets[0], Connack)
                assert packets[0].reason_code == SUCCESS, packets[0]
                return packets[1:]

    async def read(self) -> list[Packet] | None:
        """Return what came, or None when the connection is lost."""
        assert self._stream is not None
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        return self._conn.receive(bytes(data)) if data else None

    async def send(self, fates: Sequence[Fate]) -> None:
        """Write the messages, again or for the first time."""
        conn = self._conn
        await self.write(
            b"".join(
                conn.send(
                    Send(
                        fate.number,
                        fate.client_msg_no,
                        fate.channel_id,
                        fate.channel_type,
                        fate.payload,
                    )
                )
                for fate in fates
            )
        )

    async def recvack(self, packets: Sequence[Recv]) -> None:
        conn = self._conn
        await self.write(
            b"".join(
                conn.recvack(Recvack(each.message_id, each.message_seq, each.flags))
                for each in packets
            )
        )

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


class Load:
    """`pairs` senders with a receiver each. Closed loop with `window` messages in flight per
    sender, or open loop with `rate` messages a second in all."""

    def __init__(
        self,
        pairs: int,
        *,
        window: int = 4,
        rate: float = 0.0,
        group: bool = False,
        payload: bytes = b'{"type":1,"content":"hello there"}',
        prefix: str = "",
    ) -> None:
        self.senders = [Party(f"{prefix}s{i}", f"{prefix}r{i}") for i in range(pairs)]
        self.receivers = [Party(f"{prefix}r{i}") for i in range(pairs)]
        self.fates: list[Fate] = []
        """All messages in the order sent."""
        self.deliveries: list[Delivery] = []
        self._window = window
        self._rate = rate
        self._group = group
        self._payload = payload
        self._acks = 0
        self._lost = 0
        """Connections lost since they were last made."""
        self._began = 0.0
        self._owed: set[int] = set()
        """message_ids that are acknowledged and not delivered yet."""
        self._came: set[int] = set()
        """message_ids delivered to readers of person chats since the connections were made."""
        self._sending = False
        self._moved = trio.Event()

    # --- what a test reads ----------------------------------------------------------------------

    @property
    def acked(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.reason == SUCCESS]

    @property
    def refused(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.reason not in (0, SUCCESS)]

    @property
    def channels(self) -> dict[tuple[str, int], list[Fate]]:
        """The messages of each chat, in the order sent by each sender."""
        found: dict[tuple[str, int], list[Fate]] = {}
        for fate in self.fates:
            found.setdefault(fate.channel, []).append(fate)
        return found

    def latencies_ms(self, since: float, until: float) -> list[float]:
        """Sorted times from due to acknowledged of the messages that were due in the window."""
        return sorted(
            (fate.acked_at - fate.due) * 1000
            for fate in self.fates
            if since <= fate.due < until and fate.acked_at
        )

    # --- running --------------------------------------------------------------------------------

    async def prepare(self, server: ServerProcess) -> None:
        """Make the group, once."""
        if self._group:
            uids = [party.uid for party in self.senders]
            await server.post("/channel", channel_id=GROUP_ID, channel_type=GROUP, subscribers=uids)

    @asynccontextmanager
    async def running(self, address: tuple[str, int]) -> AsyncIterator[None]:
        """Connect, first send again what was never acknowledged, then load the server.

        At the end of the block sending stops; what is on its way is waited for while the
        connections live.
        """
        parties = [*self.senders, *self.receivers]
        self._lost, self._began = 0, time.monotonic()
        self._owed.clear()
        self._came.clear()
        try:
            async with trio.open_nursery() as nursery:
                for party in parties:
                    early = await party.connect(address)
                    nursery.start_soon(self._read, party, early)
                await self._start(nursery)
                yield
                self._sending = False
                self._move()
                await self.settled()
                nursery.cancel_scope.cancel()
        finally:
            self._sending = False
            for party in parties:
                await party.close()

    async def _start(self, nursery: trio.Nursery) -> None:
        for party in self.senders:
            if party.waiting:
                await party.send(list(party.waiting.values()))
        self._sending = True
        if self._rate:
            nursery.start_soon(self._pace)
        else:
            for party in self.senders:
                await self._refill(party)

    async def settled(self) -> None:
        """Wait until all is acknowledged and delivered, or every connection is lost."""
        everybody = len(self.senders) + len(self.receivers)
        while self._lost < everybody and (self._owed or any(p.waiting for p in self.senders)):
            await self._moved.wait()

    async def wait_acks(self, more: int) -> None:
        """Wait for so many further SENDACKs, whatever they say. The deadline is the caller's."""
        wanted = self._acks + more
        while self._acks < wanted:
            await self._moved.wait()

    async def wait_until(self, at: float) -> None:
        """Let the load run until a moment of the monotonic clock."""
        await trio.sleep(max(0.0, at - time.monotonic()))

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _read(self, party: Party, packets: list[Packet] | None) -> None:
        while packets is not None:
            now = time.monotonic()
            received: list[Recv] = []
            for packet in packets:
                if isinstance(packet, Sendack):
                    self._take_ack(party, packet, now)
                elif isinstance(packet, Recv):
                    received.append(packet)
                    self._take_delivery(party, packet, now)
            if received:
                await party.recvack(received)
            if party.peer and self._sending and not self._rate:
                await self._refill(party)
            if packets:
                self._move()
            packets = await party.read()
        self._lost += 1
        self._move()

    def _take_ack(self, party: Party, ack: Sendack, now: float) -> None:
        fate = party.waiting.pop(ack.client_seq)
        fate.acked_at, fate.reason = now, ack.reason_code
        fate.message_id, fate.message_seq = ack.message_id, ack.message_seq
        self._acks += 1
        # What a kill took away between SENDACK and delivery is read as history, not waited for.
        if ack.reason_code == SUCCESS and fate.channel_type == PERSON and fate.due >= self._began:
            self._owed |= {ack.message_id} - self._came

    def _take_delivery(self, party: Party, packet: Recv, now: float) -> None:
        channel_id = packet.channel_id
        if packet.channel_type == PERSON:
            channel_id = f"{packet.from_uid}>{party.uid}"
            self._came.add(packet.message_id)
            self._owed.discard(packet.message_id)
        channel = channel_id, packet.channel_type
        self.deliveries.append(
            Delivery(party.uid, channel, packet.message_id, packet.message_seq, now)
        )

    async def _refill(self, party: Party) -> None:
        fates = []
        while len(party.waiting) < self._window:
            fates.append(self._next(party, time.monotonic()))
        if fates:
            await party.send(fates)

    async def _pace(self) -> None:
        """Send on a fixed grid, from one sender after the other."""
        step, due, turn = 1 / self._rate, time.monotonic(), 0
        while self._sending:
            now = time.monotonic()
            while due <= now and self._sending:
                party = self.senders[turn % len(self.senders)]
                await party.send([self._next(party, due)])
                turn += 1
                due += step
            await trio.sleep(max(0.0, due - time.monotonic()))

    def _next(self, party: Party, due: float) -> Fate:
        party.number += 1
        to_group = self._group and party.number % 2 == 0
        fate = Fate(
            party.number,
            party.uid,
            GROUP_ID if to_group else party.peer,
            GROUP if to_group else PERSON,
            f"{party.uid}-{party.number:06}",
            self._payload,
            due,
        )
        party.waiting[fate.number] = fate
        self.fates.append(fate)
        return fate


async def history(
    server: ServerProcess, login_uid: str, channel_id: str, channel_type: int
) -> list[dict[str, Any]]:
    """Read a whole chat back, page by page, oldest first."""
    found: list[dict[str, Any]] = []
    while True:
        page = await server.post(
            "/channel/messagesync",
            login_uid=login_uid,
            channel_id=channel_id,
            channel_type=channel_type,
            start_message_seq=found[-1]["message_seq"] + 1 if found else 1,
            end_message_seq=0,
            limit=PAGE,
            pull_mode=1,
        )
        found += page["messages"]
        if len(page["messages"]) < PAGE:
            return found


async def check_history(server: ServerProcess, load: Load) -> None:
    """Every acknowledged message is stored exactly once under the ids of its SENDACK, refused ones
    are not, message_seq has no gap from 1, and each sender's messages are in the order sent."""
    for fates in load.channels.values():
        first = fates[0]
        stored = await history(server, first.from_uid, first.channel_id, first.channel_type)
        assert [m["message_seq"] for m in stored] == list(range(1, len(stored) + 1))
        rows = [(m["client_msg_no"], m["message_id"], m["message_seq"]) for m in stored]
        acked = {
            (fate.client_msg_no, fate.message_id, fate.message_seq)
            for fate in fates
            if fate.reason == SUCCESS
        }
        assert len(set(rows)) == len(rows)
        assert acked <= set(rows), f"{len(acked - set(rows))} acknowledged messages are lost"
        unanswered = {fate.client_msg_no for fate in fates if not fate.reason}
        extra = {row[0] for row in set(rows) - acked} - unanswered
        assert not extra, f"stored, but refused or under other ids: {sorted(extra)[:5]}"
        check_sender_order([m["from_uid"] for m in stored], [row[0] for row in rows])


def check_sender_order(from_uids: Sequence[str], client_msg_nos: Sequence[str]) -> None:
    """Assert that each sender's numbers ascend."""
    last: dict[str, int] = {}
    for uid, name in zip(from_uids, client_msg_nos, strict=True):
        number = int(name.rpartition("-")[2])
        assert number > last.get(uid, 0), f"{name} is stored out of order"
        last[uid] = number


def check_deliveries(load: Load) -> None:
    """First deliveries ascend per reader and chat; every acknowledged message of a person chat
    came exactly once; refused ones never came."""
    acked = {fate.message_id for fate in load.acked}
    last: dict[tuple[str, tuple[str, int]], int] = {}
    seen: dict[str, set[int]] = {}
    for each in load.deliveries:
        known = seen.setdefault(each.to_uid, set())
        assert each.message_id not in known, f"{each} came twice"
        known.add(each.message_id)
        assert each.message_id in acked, f"{each} was not acknowledged"
        key = each.to_uid, each.channel
        assert each.message_seq > last.get(key, 0), f"{each} came out of order"
        last[key] = each.message_seq
    for fate in load.acked:
        if fate.channel_type == PERSON:
            assert fate.message_id in seen.get(fate.channel_id, set()), f"{fate} was not delivered"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of sorted `values` lie; 0 without values."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0
