"""The trio side of the gRPC wire, over a socket pair with a raw peer."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tests.kit.grpc_peer import RawPeer, frame, message
from wkhost.plugin_host.grpc import (
    BidiMethod,
    BidiStream,
    CallInfo,
    GrpcConnection,
    GrpcError,
    Limits,
    Metadata,
    Methods,
    StatusCode,
    UnaryMethod,
)
from wkhost.plugin_host.grpc.frames import RST_STREAM, WINDOW_UPDATE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MIB = 1024 * 1024


class Recorder:
    """A stream handler that writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.stream: BidiStream

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        self.stream = stream
        self.seen.append("opened")

    def message(self, data: bytes) -> None:
        if data == b"raise a status":
            raise GrpcError(StatusCode.ABORTED, "as asked")
        if data == b"raise a bug":
            raise RuntimeError("a secret of the handler")
        self.seen.append(data)

    def echo(self, data: bytes) -> None:
        self.stream.send(data)

    def half_closed(self) -> None:
        self.seen.append("half closed")
        self.stream.finish()

    def writable(self) -> None:
        self.seen.append("writable")

    def closed(self, error: GrpcError | None) -> None:
        self.seen.append(None if error is None else error.code)


class CountingSocket(socket.socket):
    """Counts system calls that move bytes."""

    received = 0
    sent = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.received += 1
        return super().recv(size, flags)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.sent += 1
        return super().send(data, flags)


class Served:
    def __init__(self, nursery: trio.Nursery, limits: Limits | None) -> None:
        ours, theirs = socket.socketpair()
        self.socket = CountingSocket(fileno=ours.detach())
        self.handler = Recorder()
        self.cancelled = 0
        methods: Methods = {
            "/t.T/B": BidiMethod(lambda: self.handler),
            "/t.T/Sleep": UnaryMethod(self._sleep),
            "/t.T/Bug": UnaryMethod(self._bug),
            "/t.T/Wait": UnaryMethod(self._wait),
            "/t.T/Work": UnaryMethod(self._work),
        }
        self.gate = trio.Event()
        self.arrived = 0
        self.worked = 0
        self.connection = GrpcConnection(self.socket, methods, limits=limits)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.peer = RawPeer()
        self.over = trio.Event()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        assert await self.connection.run() is None
        self.over.set()

    async def _sleep(self, request: bytes, call: CallInfo) -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1

    async def _bug(self, request: bytes, call: CallInfo) -> bytes:
        raise RuntimeError("a secret of the handler")

    async def _wait(self, request: bytes, call: CallInfo) -> bytes:
        self.arrived += 1
        await self.gate.wait()
        return request

    def _work(self, request: bytes, call: CallInfo) -> bytes:
        """Half a millisecond of the loop, as a page of messages takes."""
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        self.worked += 1
        return b""

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def status_of(self, stream_id: int) -> str:
        while stream_id not in self.peer.status:
            self.peer.receive(await self.stream.receive_some())
        return self.peer.status[stream_id]


@asynccontextmanager
async def serving(limits: Limits | None = None) -> AsyncIterator[Served]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            served = Served(nursery, limits)
            async with served.stream:
                await served.say(RawPeer.START)
                yield served
            await served.over.wait()


async def test_callbacks_come_in_order_and_end_once() -> None:
    async with serving() as served:
        await served.say(served.peer.headers(1, "/t.T/B"))
        await served.say(served.peer.body(1, message(b"first one") + message(b"second one")))
        assert await served.status_of(1) == "0"
    assert served.handler.seen == ["opened", b"first one", b"second one", "half closed", None]


async def test_peer_that_goes_away_closes_the_stream() -> None:
    async with serving() as served:
        await served.say(served.peer.headers(1, "/t.T/B"))
    assert served.handler.seen == ["opened", StatusCode.UNAVAILABLE]


@pytest.mark.parametrize(("data", "status"), [(b"raise a status", "10"), (b"raise a bug", "13")])
async def test_exception_of_a_callback_ends_that_stream_only(data: bytes, status: str) -> None:
    with capture_logs() as logs:
        async with serving() as served:
            await served.say(served.peer.headers(1, "/t.T/B") + served.peer.body(1, message(data)))
            assert await served.status_of(1) == status
            served.handler = Recorder()
            await served.say(served.peer.call(3, "/t.T/B", b"the next call"))
            assert await served.status_of(3) == "0"
    assert [log["event"] for log in logs] == ["grpc_handler_failed"] * (status == "13")


async def test_bug_in_a_unary_handler_is_logged_and_not_told() -> None:
    with capture_logs() as logs:
        async with serving() as served:
            await served.say(served.peer.call(1, "/t.T/Bug", b""))
            assert await served.status_of(1) == "13"
            assert not any(b"secret" in body for *_, body in served.peer.frames)
    assert [log["event"] for log in logs] == ["grpc_handler_failed"]


async def test_deadline_ends_calls_at_the_server_too() -> None:
    async with serving() as served:
        extra = (("grpc-timeout", "20m"),)
        head = served.peer.headers(1, "/t.T/Sleep", extra=extra)
        await served.say(head + served.peer.body(1, message(b"")))
        await served.say(served.peer.headers(3, "/t.T/B", extra=extra))
        assert await served.status_of(1) == "4"
        assert await served.status_of(3) == "4"
    assert served.cancelled == 1
    assert served.handler.seen == ["opened", StatusCode.DEADLINE_EXCEEDED]


async def test_writable_comes_once_everything_is_on_its_way() -> None:
    async with serving() as served:
        await served.say(served.peer.headers(1, "/t.T/B"))
        served.handler.stream.send(b"small enough")
        assert served.handler.stream.unsent_bytes == 0
        served.handler.stream.send(bytes(MIB))
        unsent = served.handler.stream.unsent_bytes
        assert 0 < unsent < MIB
        assert served.handler.seen == ["opened"]
        window = (2 * MIB).to_bytes(4, "big")
        await served.say(frame(WINDOW_UPDATE, 0, 0, window) + frame(WINDOW_UPDATE, 0, 1, window))
        assert served.handler.seen == ["opened"]  # the socket is full now
        while len(served.peer.data.get(1, b"")) < MIB:
            served.peer.receive(await served.stream.receive_some())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert served.handler.stream.unsent_bytes == 0
        assert served.handler.seen == ["opened", "writable"]


async def test_batch_costs_one_read_and_one_write() -> None:
    async with serving() as served:
        await served.say(served.peer.headers(1, "/t.T/B"))
        served.socket.received = served.socket.sent = 0
        for number in range(20):
            served.handler.stream.send(b"calls, batch %d" % number)
            verdicts = message(b"verdicts, one part") + message(b"and another part")
            await served.say(served.peer.body(1, verdicts, end=False))
        assert (served.socket.received, served.socket.sent) == (20, 20)
        assert len(served.handler.seen) == 1 + 2 * 20


async def test_answers_of_one_turn_share_a_write() -> None:
    async with serving() as served:
        served.handler.message = served.handler.echo  # type: ignore[method-assign]
        await served.say(served.peer.headers(1, "/t.T/B"))
        served.socket.sent = 0
        await served.say(served.peer.body(1, message(b"something") * 30, end=False))
        assert served.socket.sent == 1


async def test_calls_that_end_together_share_a_write() -> None:
    """As those do that waited for the same fsync."""
    async with serving() as served:
        await served.say(
            b"".join(served.peer.call(n, "/t.T/Wait", b"put") for n in range(1, 129, 2))
        )
        assert served.arrived == 64
        served.socket.sent = 0
        served.gate.set()
        assert [await served.status_of(n) for n in range(1, 129, 2)] == ["0"] * 64
        assert served.socket.sent <= 8


async def test_calls_leave_turns_to_everybody_else() -> None:
    async with serving() as served:
        calls = [served.peer.call(n, "/t.T/Work", b"") for n in range(1, 129, 2)]
        await served.stream.send_all(b"".join(calls))
        portions = []
        while served.worked < 64:
            before = served.worked
            await trio.lowlevel.checkpoint()
            portions.append(served.worked - before)
        # A millisecond and the call that was begun; two slices may lie between two of our turns.
        assert max(portions) <= 6
        assert await served.status_of(127) == "0"


async def test_call_that_the_peer_gave_up_while_it_waited_never_runs() -> None:
    limits = Limits(calls_burst=1, calls_per_s=1.0)
    async with serving(limits) as served:
        cancel = (8).to_bytes(4, "big")
        calls = [served.peer.call(n, "/t.T/Work", b"") for n in (1, 3, 5)]
        await served.say(b"".join(calls) + frame(RST_STREAM, 0, 3, cancel))
        assert await served.status_of(5) == "0"
        assert served.worked == 2


async def test_send_after_the_end_is_ignored() -> None:
    async with serving() as served:
        await served.say(served.peer.call(1, "/t.T/B", b"only message"))
        served.handler.stream.send(b"too late")
        served.handler.stream.finish(StatusCode.ABORTED, "too late")
        assert await served.status_of(1) == "0"
        assert 1 not in served.peer.data
