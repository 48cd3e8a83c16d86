"""The service that every client of the conformance suite talks to, served from a thread."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

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
    listen_unix,
)

PREFIX = "/conformance.Echo/"
SMALL_BYTES = 256 * 1024
FLOOD_CHUNK = bytes(64 * 1024)


class Service:
    """Handlers and what they saw. Used in the server's thread only, but for plain counters."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.hanging = 0
        self.closed: list[GrpcError | None] = []
        self.flooded = 0
        self.connections: list[GrpcConnection] = []
        self.errors: list[RemoteProtocolError] = []
        self._waiting = 0
        self._all_here = trio.Event()

    def methods(self) -> Methods:
        return {
            PREFIX + "Unary": UnaryMethod(self._unary),
            PREFIX + "Small": UnaryMethod(self._unary, SMALL_BYTES),
            PREFIX + "Sleep": UnaryMethod(self._sleep),
            PREFIX + "Fail": UnaryMethod(self._fail),
            PREFIX + "Crash": UnaryMethod(self._crash),
            PREFIX + "Metadata": UnaryMethod(self._metadata),
            PREFIX + "Barrier": UnaryMethod(self._barrier),
            PREFIX + "Stats": UnaryMethod(self._stats),
            PREFIX + "Stream": BidiMethod(lambda: Echo(self)),
            PREFIX + "SmallStream": BidiMethod(lambda: Echo(self), SMALL_BYTES),
            PREFIX + "Hang": BidiMethod(lambda: Hang(self)),
            PREFIX + "Flood": BidiMethod(lambda: Flood(self)),
        }

    async def _unary(self, request: bytes, call: CallInfo) -> bytes:
        return request

    async def _sleep(self, request: bytes, call: CallInfo) -> bytes:
        self.hanging += 1
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.hanging -= 1

    async def _fail(self, request: bytes, call: CallInfo) -> bytes:
        raise GrpcError(StatusCode.FAILED_PRECONDITION, request.decode())

    async def _crash(self, request: bytes, call: CallInfo) -> bytes:
        raise RuntimeError("a secret of the handler")

    async def _metadata(self, request: bytes, call: CallInfo) -> bytes:
        seen = [[k, v.hex() if isinstance(v, bytes) else v] for k, v in call.metadata]
        return json.dumps(seen).encode()

    async def _barrier(self, request: bytes, call: CallInfo) -> bytes:
        """Answers once 64 calls wait here together."""
        self._waiting += 1
        if self._waiting == 64:
            self._waiting = 0
            self._all_here.set()
            self._all_here = trio.Event()
        else:
            await self._all_here.wait()
        return request

    async def _stats(self, request: bytes, call: CallInfo) -> bytes:
        stats = {"cancelled": self.cancelled, "hanging": self.hanging, "flooded": self.flooded}
        return json.dumps(stats).encode()


class Echo:
    """Sends every message back; ends with OK when the client half-closes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        self.stream = stream

    def message(self, data: bytes) -> None:
        self.stream.send(data)

    def half_closed(self) -> None:
        self.stream.finish()

    def writable(self) -> None:
        pass

    def closed(self, error: GrpcError | None) -> None:
        self._service.closed.append(error)


class Hang(Echo):
    """Says that it is open and then nothing, until the peer goes away."""

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        super().opened(stream, metadata)
        self._service.hanging += 1
        stream.send(b"it is open")

    def half_closed(self) -> None:
        pass

    def closed(self, error: GrpcError | None) -> None:
        super().closed(error)
        self._service.hanging -= 1
        if error is not None and error.code == StatusCode.CANCELLED:
            self._service.cancelled += 1


class Flood(Echo):
    """Sends a chunk whenever the last one is on its way, 256 MiB at most."""

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        super().opened(stream, metadata)
        self._service.flooded = 0
        self.writable()

    def writable(self) -> None:
        while self.stream.unsent_bytes == 0 and self._service.flooded < 256 * 1024 * 1024:
            self._service.flooded += len(FLOOD_CHUNK)
            self.stream.send(FLOOD_CHUNK)


class Server:
    """Accepts any number of connections; each is one GrpcConnection."""

    def __init__(self, path: Path, service: Service) -> None:
        self._listener = listen_unix(path)
        self._service = service
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()

    def serve(self, ready: threading.Event) -> None:
        trio.run(self._serve, ready)

    def stop(self) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)

    async def _serve(self, ready: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        ready.set()
        with self._listener, self._scope:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._listener)
                    sock, _ = self._listener.accept()
                    nursery.start_soon(self._connection, sock)

    async def _connection(self, sock: socket.socket) -> None:
        connection = GrpcConnection(sock, self._service.methods())
        self._service.connections.append(connection)
        error = await connection.run()
        if error is not None:
            self._service.errors.append(error)


@contextmanager
def serving(path: Path) -> Iterator[Service]:
    service = Service()
    server = Server(path, service)
    ready = threading.Event()
    thread = threading.Thread(target=server.serve, args=(ready,))
    thread.start()
    ready.wait()
    try:
        yield service
    finally:
        server.stop()
        thread.join()
