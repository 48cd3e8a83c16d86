"""One gRPC connection served in the trio thread, on a non-blocking socket.

No task per message: the reader task takes what the socket has, runs the callbacks and writes
all answers with one `send`. A send from elsewhere (a stage with the next batch) writes at once.
A second task waits only while the socket is full; a third serves the unary calls (calls.py).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

import structlog
import trio

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.calls import UnaryCalls
from wkhost.plugin_host.grpc.events import (
    CallClosed,
    CallOpened,
    Event,
    HalfClosed,
    MessageReceived,
    UnaryRequest,
)
from wkhost.plugin_host.grpc.methods import Limits, Methods, StreamHandler
from wkhost.plugin_host.grpc.status import GrpcError, StatusCode
from wkhost.plugin_host.grpc.wire import ServerWire

_READ_BYTES: Final = 64 * 1024

log = structlog.get_logger(__name__)


class _Call:
    """A bidirectional call as its handler sees it; implements `BidiStream`."""

    __slots__ = ("_connection", "_id", "deadline", "handler", "waiting")

    def __init__(self, connection: GrpcConnection, stream_id: int, handler: StreamHandler) -> None:
        self._connection = connection
        self._id = stream_id
        self.handler = handler
        self.waiting = False
        self.deadline: trio.CancelScope | None = None

    @property
    def unsent_bytes(self) -> int:
        return self._connection.wire.unsent_bytes(self._id)

    def send(self, data: bytes) -> None:
        connection = self._connection
        connection.wire.send_message(self._id, data)
        connection.flush()
        self.waiting = connection.wire.unsent_bytes(self._id) > 0

    def finish(self, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        self._connection.wire.finish(self._id, code, message)
        self._connection.flush()


class GrpcConnection:
    """Serves `methods` to the one peer on `sock` until it goes away or breaks the protocol.

    The connection owns the socket and closes it. Everything runs in the task that calls `run`.
    """

    def __init__(
        self, sock: socket.socket, methods: Methods, *, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.wire = ServerWire(methods, self.limits)
        sock.setblocking(False)
        self._sock = sock
        self._bidi: dict[int, _Call] = {}
        self._calls = UnaryCalls(self.limits, self.wire.reply, self._failed, self.flush)
        self._in_turn = False
        self._broken = False
        self._draining = False
        self._full = trio.Event()
        self._emptied = trio.Event()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> RemoteProtocolError | None:
        """Serve; returns when the peer is gone, drained, or (with its error) broke the protocol."""
        error: RemoteProtocolError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_when_ready)
                nursery.start_soon(self._calls.run)
                self.flush()
                task_status.started()
                error = await self._read(nursery)
                # In this turn: whoever waits for an answer must not wait for our clearing up.
                self._end_calls()
                nursery.cancel_scope.cancel()
        finally:
            self._abandon()
        return error

    def drain(self) -> None:
        """Take no new calls; `run` returns once those that are open have ended."""
        self.wire.drain()
        self._draining = True
        self.flush()

    # --- reading ---

    async def _read(self, nursery: trio.Nursery) -> RemoteProtocolError | None:
        wire, sock = self.wire, self._sock
        wait_readable = trio.lowlevel.wait_readable
        while not self._broken:
            if wire.backlog:
                await trio.lowlevel.checkpoint()
                data = b""
            elif wire.output_full:
                self._emptied = trio.Event()
                await self._emptied.wait()
                continue
            else:
                await wait_readable(sock)
                try:
                    data = sock.recv(_READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    return None
                if not data:
                    return None
            try:
                self._turn(data, nursery)
            except RemoteProtocolError as error:
                self.flush()
                return error
        return None

    def _turn(self, data: bytes, nursery: trio.Nursery) -> None:
        wire = self.wire
        self._in_turn = True
        try:
            events = wire.receive(data, trio.current_time())
            while events:
                for event in events:
                    self._handle(event, nursery)
                events = wire.take_events()
        finally:
            self._in_turn = False
        self.flush()
        self._notify_writable()

    def _handle(self, event: Event, nursery: trio.Nursery) -> None:
        if type(event) is MessageReceived:
            call = self._bidi.get(event.stream_id)
            if call is not None:
                self._guard(event.stream_id, call.handler.message, event.data)
        elif type(event) is UnaryRequest:
            self._calls.add(event)
        elif type(event) is CallOpened:
            self._open(event, nursery)
        elif type(event) is CallClosed:
            self._ended(event)
        elif type(event) is HalfClosed:
            call = self._bidi.get(event.stream_id)
            if call is not None:
                self._guard(event.stream_id, call.handler.half_closed)

    def _open(self, event: CallOpened, nursery: trio.Nursery) -> None:
        stream_id = event.stream_id
        try:
            handler = event.method.new_handler()
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            self._failed(stream_id, error)
            return
        call = self._bidi[stream_id] = _Call(self, stream_id, handler)
        if event.deadline is not None:
            call.deadline = trio.CancelScope()
            nursery.start_soon(self._watch_deadline, call, event.deadline)
        self._guard(stream_id, handler.opened, call, event.metadata)

    def _ended(self, event: CallClosed) -> None:
        call = self._bidi.pop(event.stream_id, None)
        if call is None:
            self._calls.over(event.stream_id)
            return
        if call.deadline is not None:
            call.deadline.cancel()
        self._closed(call, event.error)

    # --- borders: one plugin call ---

    def _guard(self, stream_id: int, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:  # noqa: BLE001 - the border of one plugin call
            self._failed(stream_id, error)

    def _closed(self, call: _Call, error: GrpcError | None) -> None:
        try:
            call.handler.closed(error)
        except Exception:
            log.exception("grpc_closed_callback_failed")

    def _failed(self, stream_id: int, error: Exception) -> None:
        """End a call over what its handler raised; only GrpcError tells the peer more."""
        if isinstance(error, GrpcError):
            self.wire.finish(stream_id, error.code, error.message)
        else:
            log.error("grpc_handler_failed", exc_info=error)
            self.wire.finish(stream_id, StatusCode.INTERNAL, "the handler failed")
        self.flush()

    async def _watch_deadline(self, call: _Call, deadline: float) -> None:
        assert call.deadline is not None
        with call.deadline:
            await trio.sleep_until(deadline)
            call.finish(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")

    # --- writing ---

    def flush(self) -> None:
        """Write what the socket takes now; the writer task continues when it takes more."""
        if self._in_turn or self._broken:
            return
        wire = self.wire
        output = wire.output
        try:
            while output:
                wire.sent(self._sock.send(output))
        except BlockingIOError:
            self._full.set()
        except OSError:  # the peer is gone
            self._hang_up()
            return
        if not wire.output_full:
            self._emptied.set()
        for event in wire.take_events():  # sending may have ended calls
            if type(event) is CallClosed:
                self._ended(event)
        if self._draining and wire.idle and not output:
            self._hang_up()

    def _hang_up(self) -> None:
        """End both directions, which wakes the reader wherever it waits."""
        self._broken = True
        self._emptied.set()
        with contextlib.suppress(OSError):  # the peer may have closed first
            self._sock.shutdown(socket.SHUT_RDWR)

    async def _write_when_ready(self) -> None:
        while True:
            await self._full.wait()
            self._full = trio.Event()
            while self.wire.output and not self._broken:
                await trio.lowlevel.wait_writable(self._sock)
                self.flush()
                self._notify_writable()

    def _notify_writable(self) -> None:
        for stream_id, call in list(self._bidi.items()):
            if call.waiting and not self.wire.unsent_bytes(stream_id):
                call.waiting = False
                self._guard(stream_id, call.handler.writable)

    def _abandon(self) -> None:
        """The connection is over: its calls end with it."""
        self._broken = True
        self._sock.close()
        self._end_calls()

    def _end_calls(self) -> None:
        self._broken = True
        calls, self._bidi = self._bidi, {}
        for call in calls.values():
            self._closed(call, GrpcError(StatusCode.UNAVAILABLE, "the connection is closed"))
