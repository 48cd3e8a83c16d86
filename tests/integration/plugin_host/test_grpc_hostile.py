"""Hostile peers on a real socket: the connection is closed, and the host's memory stays small."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.kit.grpc_peer import RawPeer, frame, message
from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc import (
    BidiMethod,
    BidiStream,
    CallInfo,
    GrpcConnection,
    GrpcError,
    Metadata,
    Methods,
    StatusCode,
    UnaryMethod,
)
from wkhost.plugin_host.grpc.frames import (
    CONTINUATION,
    DATA,
    FLAG_END_HEADERS,
    FRAME_HEADER,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

pytestmark = pytest.mark.chaos

MIB = 1024 * 1024
CANCEL = (8).to_bytes(4, "big")
COUNT = 10_000
Attack = Callable[[RawPeer], Iterator[bytes]]


class Echo:
    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        self.stream = stream

    def message(self, data: bytes) -> None:
        self.stream.send(data)

    def half_closed(self) -> None:
        self.stream.finish()

    def writable(self) -> None:
        pass

    def closed(self, error: GrpcError | None) -> None:
        pass


async def unary(request: bytes, call: CallInfo) -> bytes:
    return request


async def large(request: bytes, call: CallInfo) -> bytes:
    return bytes(4 * MIB)


METHODS: Methods = {
    "/t.T/U": UnaryMethod(unary),
    "/t.T/L": UnaryMethod(large),
    "/t.T/B": BidiMethod(Echo),
}


def rapid_reset(peer: RawPeer) -> Iterator[bytes]:
    for n in range(COUNT):
        yield peer.headers(2 * n + 1, "/t.T/B") + frame(RST_STREAM, 0, 2 * n + 1, CANCEL)


def provoked_resets(peer: RawPeer) -> Iterator[bytes]:
    """Calls of a method that does not exist, left open, so that the host resets them."""
    for n in range(COUNT):
        yield peer.headers(2 * n + 1, "/t.T/X")


def too_many_streams(peer: RawPeer) -> Iterator[bytes]:
    for n in range(COUNT):
        yield peer.headers(2 * n + 1, "/t.T/B")


def pings(peer: RawPeer) -> Iterator[bytes]:
    return iter([frame(PING, 0, 0, bytes(8))] * COUNT)


def settings(peer: RawPeer) -> Iterator[bytes]:
    for n in range(COUNT):
        yield frame(SETTINGS, body=b"\x00\x01" + (n % 5000).to_bytes(4, "big"))


def window_updates(peer: RawPeer) -> Iterator[bytes]:
    return iter([frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big"))] * COUNT)


def priorities(peer: RawPeer) -> Iterator[bytes]:
    return iter([frame(PRIORITY, 0, 1, bytes(5))] * COUNT)


def unknown_frames(peer: RawPeer) -> Iterator[bytes]:
    return iter([frame(0xEE, 0, 1, bytes(100))] * COUNT)


def empty_data(peer: RawPeer) -> Iterator[bytes]:
    yield peer.headers(1, "/t.T/B")
    yield from [frame(DATA, 0, 1)] * COUNT


def empty_messages(peer: RawPeer) -> Iterator[bytes]:
    yield peer.headers(1, "/t.T/B")
    yield from [frame(DATA, 0, 1, message(b"") * 100)] * 100


def continuations(peer: RawPeer) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, b"")
    yield from [frame(CONTINUATION, 0, 1, bytes(1000))] * COUNT


def empty_continuations(peer: RawPeer) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, b"")
    yield from [frame(CONTINUATION, 0, 1)] * COUNT


def large_header_list(peer: RawPeer) -> Iterator[bytes]:
    yield peer.headers(1, "/t.T/U", extra=[("x-a", "v" * 1000)] * 100)


def compressed_header_bomb(peer: RawPeer) -> Iterator[bytes]:
    """A header of 3,900 bytes put into the table once, then named 1,000 times by one byte."""
    yield peer.headers(1, "/t.T/U", extra=[("x-bomb", "v" * 3900)] * 1000)


def window_overflow(peer: RawPeer) -> Iterator[bytes]:
    yield frame(WINDOW_UPDATE, 0, 0, (2**31 - 1).to_bytes(4, "big"))


def huge_frame(peer: RawPeer) -> Iterator[bytes]:
    yield FRAME_HEADER.pack(0xFFFF, 0xFF, DATA, 0, 1)
    yield from [bytes(64 * 1024)] * 200


def garbage(peer: RawPeer) -> Iterator[bytes]:
    yield bytes(range(256)) * 100


def data_after_end(peer: RawPeer) -> Iterator[bytes]:
    yield peer.call(1, "/t.T/B", b"something")
    yield from [frame(DATA, 0, 1, message(b"and more"))] * COUNT


def data_on_idle_stream(peer: RawPeer) -> Iterator[bytes]:
    yield frame(DATA, 0, 7, message(b"nobody"))


def push(peer: RawPeer) -> Iterator[bytes]:
    yield frame(PUSH_PROMISE, FLAG_END_HEADERS, 1, bytes(4))


ATTACKS: tuple[Attack, ...] = (
    rapid_reset,
    provoked_resets,
    too_many_streams,
    pings,
    settings,
    window_updates,
    priorities,
    unknown_frames,
    empty_data,
    empty_messages,
    continuations,
    empty_continuations,
    large_header_list,
    compressed_header_bomb,
    window_overflow,
    huge_frame,
    garbage,
    data_after_end,
    data_on_idle_stream,
    push,
)


class Served:
    """A connection being served, its raw socket, and the result of `run`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        ours, theirs = socket.socketpair()
        self.connection = GrpcConnection(ours, METHODS)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.error: RemoteProtocolError | None = None
        self.over = trio.Event()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        self.error = await self.connection.run()
        self.over.set()

    async def attack(self, parts: Iterator[bytes]) -> None:
        """Send until it is over; the peer never reads."""
        try:
            for part in parts:
                await self.stream.send_all(part)
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    async with trio.open_nursery() as nursery:
        served = Served(nursery)
        async with served.stream:
            yield served
            nursery.cancel_scope.cancel()


async def call_works(served: Served, peer: RawPeer, stream_id: int) -> None:
    await served.stream.send_all(peer.call(stream_id, "/t.T/U", b"still here"))
    while stream_id not in peer.status:
        peer.receive(await served.stream.receive_some())
    assert peer.data[stream_id] == message(b"still here")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_attack_ends_its_connection_within_bounded_memory(attack: Attack) -> None:
    parts = [RawPeer.START, *attack(RawPeer())]
    tracemalloc.start()
    try:
        with trio.fail_after(20):
            async with serving() as served:
                await served.attack(iter(parts))
                await served.over.wait()
                _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert served.error is not None
    assert peak < 3 * MIB


async def test_http1_is_refused_with_a_goaway() -> None:
    with trio.fail_after(5):
        async with serving() as served:
            await served.stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b"".join([data async for data in served.stream])
    peer = RawPeer()
    peer.receive(answer)
    assert peer.kinds()[-1] == GOAWAY
    assert served.error is not None


async def test_peer_that_asks_and_never_reads_is_no_longer_read() -> None:
    """64 answers of 4 MiB for a peer whose socket is full: queued up to a bound, refused beyond."""
    tracemalloc.start()
    try:
        with trio.fail_after(20):
            async with serving() as served:
                peer = RawPeer()
                window = (2**30).to_bytes(4, "big")
                await served.stream.send_all(RawPeer.START + frame(WINDOW_UPDATE, 0, 0, window))
                for n in range(64):
                    await served.stream.send_all(peer.call(2 * n + 1, "/t.T/L", b"give me much"))
                    await trio.testing.wait_all_tasks_blocked()
                _, peak = tracemalloc.get_traced_memory()
                assert peak < 24 * MIB
    finally:
        tracemalloc.stop()


async def test_half_sent_requests_of_all_streams_stay_within_the_buffer() -> None:
    tracemalloc.start()
    try:
        with trio.fail_after(20):
            async with serving() as served:
                peer = RawPeer()
                await served.stream.send_all(RawPeer.START)
                part = message(bytes(3 * MIB))[: MIB // 2]
                for n in range(60):
                    head = peer.headers(2 * n + 1, "/t.T/U")
                    body = peer.body(2 * n + 1, part, end=False)
                    await served.stream.send_all(head + body)
                _, peak = tracemalloc.get_traced_memory()
                await call_works(served, peer, 1001)
                assert peak < 24 * MIB
                exhausted = str(int(StatusCode.RESOURCE_EXHAUSTED))
                assert list(peer.status.values()).count(exhausted) >= 40
    finally:
        tracemalloc.stop()


async def test_flood_leaves_other_tasks_their_turns() -> None:
    """While one connection is flooded with calls, another task runs at least every few ms."""
    longest = 0.0
    parts = [RawPeer.START, *too_many_streams(RawPeer())]

    async def clock(over: trio.Event) -> None:
        nonlocal longest
        last = trio.current_time()
        while not over.is_set():
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
            longest = max(longest, now - last)
            last = now

    with trio.fail_after(20):
        async with serving() as served, trio.open_nursery() as nursery:
            nursery.start_soon(clock, served.over)
            await served.attack(iter([b"".join(parts)]))
    assert longest < 0.05


async def test_drained_connection_ends_when_its_calls_have() -> None:
    with trio.fail_after(5):
        async with serving() as served:
            peer = RawPeer()
            await served.stream.send_all(RawPeer.START + peer.call(1, "/t.T/B", b"one", end=False))
            while 1 not in peer.data:
                peer.receive(await served.stream.receive_some())
            served.connection.drain()
            await trio.testing.wait_all_tasks_blocked()
            assert not served.over.is_set()
            await served.stream.send_all(peer.body(1, b""))
            await served.over.wait()
            peer.receive(await served.stream.receive_some())
    assert served.error is None
    assert peer.status == {1: "0"}
