"""A kernel over the memory store, with an outbox that records: no sockets, virtual time welcome."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
import trio.testing

from wkhost.clock import Clock
from wkhost.delivery.boundary import ConnectRequest
from wkhost.hooks.specs import host_hooks
from wkhost.kernel.kernel import Kernel
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import OPERATOR, Actor, Done, Request, Response
from wkhost.protocol.packets import Connect, Event, Recv, Recvack, Send, Sendack
from wkhost.store.store import Store, open_store

NODE_ID = 7


class Kick(NamedTuple):
    conn_id: int
    reason_code: int
    text: str
    close_after_s: float


class RecordingOutbox:
    """Implements `Outbox`: keeps everything, per connection, in order."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.refused: dict[int, tuple[int, str]] = {}
        self.acks: dict[int, list[Sendack]] = {}
        self.recvs: dict[int, list[Recv]] = {}
        self.kicks: list[Kick] = []
        self.closes: list[tuple[int, float]] = []
        self.flushes = 0

    def accept(self, conn_id: int) -> None:
        self.accepted.append(conn_id)

    def refuse(self, conn_id: int, reason_code: int, text: str = "") -> None:
        self.refused[conn_id] = (reason_code, text)

    def sendacks(self, batch: Sequence[tuple[int, Sendack]]) -> None:
        for conn_id, sendack in batch:
            self.acks.setdefault(conn_id, []).append(sendack)

    def recv(self, recv: Recv, conn_ids: Sequence[int]) -> None:
        for conn_id in conn_ids:
            self.recvs.setdefault(conn_id, []).append(recv)

    def event(self, event: Event, conn_ids: Sequence[int]) -> None:
        raise AssertionError("no part of the kernel sends events yet")

    def disconnect(self, conn_id: int, reason_code: int, text: str, close_after_s: float) -> None:
        self.kicks.append(Kick(conn_id, reason_code, text, close_after_s))

    def close(self, conn_id: int, after_s: float = 0.0) -> None:
        self.closes.append((conn_id, after_s))

    def flush(self) -> None:
        self.flushes += 1


class KernelKit:
    """A running kernel and the shorthands that tests need."""

    def __init__(self, kernel: Kernel, outbox: RecordingOutbox, store: Store) -> None:
        self.kernel = kernel
        self.outbox = outbox
        self.store = store
        self.clock = Clock()
        self._conn_ids = iter(range(1, 1_000_000))
        self._client_seqs = iter(range(1, 1_000_000))

    def connect(
        self,
        uid: str,
        *,
        device_flag: int = 0,
        device_id: str = "",
        token: str = "",
    ) -> int:
        """Ask for a login; return the connection's number, accepted or not."""
        conn_id = next(self._conn_ids)
        connect = Connect(5, device_flag, device_id or f"d{conn_id}", uid, token)
        self.kernel.connects([ConnectRequest(conn_id, connect, "127.0.0.1", 1, "tcp", False)])
        return conn_id

    def send(
        self,
        conn_id: int,
        channel_id: str,
        payload: bytes = b"{}",
        *,
        channel_type: int = 1,
        client_msg_no: str = "",
        flags: int = 0,
    ) -> int:
        """Send one message; return its client_seq."""
        client_seq = next(self._client_seqs)
        packet = Send(client_seq, client_msg_no, channel_id, channel_type, payload, flags)
        self.kernel.packets([(conn_id, packet)])
        return client_seq

    def recvack(self, conn_id: int, message_id: int, flags: int = 0) -> None:
        self.kernel.packets([(conn_id, Recvack(message_id, 0, flags))])

    async def ask(self, request: Request) -> Response:
        return await self.kernel.service.handle(request, Actor(OPERATOR, 0, 0))

    async def change(self, request: Request) -> None:
        answer = await self.ask(request)
        assert isinstance(answer, Done), answer

    async def ack(self, conn_id: int, client_seq: int) -> Sendack:
        """Wait for the SENDACK of one SEND."""
        with trio.fail_after(5):
            while True:
                for sendack in self.outbox.acks.get(conn_id, ()):
                    if sendack.client_seq == client_seq:
                        return sendack
                await trio.lowlevel.checkpoint()

    async def deliver(self, conn_id: int, channel_id: str, **how: object) -> Sendack:
        """Send, wait for the SENDACK and for the delivery that follows it."""
        sendack = await self.ack(conn_id, self.send(conn_id, channel_id, **how))  # type: ignore[arg-type]
        await self.settle()
        return sendack

    async def until_healthy(self) -> None:
        """Wait until the store takes writes again."""
        with trio.fail_after(5):
            while not self.kernel.statistics()["commit"]["healthy"]:
                await trio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Let every stage finish what it has."""
        await self.kernel.drain()
        await trio.testing.wait_all_tasks_blocked()

    async def settle_sends(self, results: Sequence[object], count: int) -> None:
        """Wait until `count` sends of other doors were answered."""
        with trio.fail_after(5):
            while len(results) < count:
                await trio.lowlevel.checkpoint()

    def received(self, conn_id: int) -> list[Recv]:
        return self.outbox.recvs.get(conn_id, [])


@asynccontextmanager
async def running_kernel(
    settings: KernelSettings | None = None,
    store: Store | None = None,
    outbox: RecordingOutbox | None = None,
) -> AsyncIterator[KernelKit]:
    """Run a kernel on `store` (a fresh one in memory by default) while the block runs."""
    own = store is None
    store = store or await open_store(None)
    outbox = outbox or RecordingOutbox()
    kernel = Kernel(
        settings=settings or KernelSettings(),
        store=store,
        outbox=outbox,
        clock=Clock(),
        node_id=NODE_ID,
        events=host_hooks(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(kernel.run)
        yield KernelKit(kernel, outbox, store)
        nursery.cancel_scope.cancel()
    if own:
        await store.close()
