"""From the stream to the dispatcher and back, in callbacks of the loop: no task takes part.

Theory of operation. `_turn` takes the frames that have come, a slice of calls at a time, and sends
the answers after each slice. Between two slices of a large batch the loop gets a turn, so that its
first answers leave while the rest is decided. Answers of handlers that wait come later; one
call-back per turn of the loop sends what has gathered. Answers that the host does not take yet
stay in the outbox. All turns share one context, so that what one slice sets the next one sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import copy_context

from google.protobuf.message import DecodeError

from plugin_sdk.dispatch import Dispatcher, ProtocolError
from plugin_sdk.transport import HookStream
from plugin_sdk.wire.v1 import plugin_pb2

LAST_ANSWER_S = 1.0
"""How long the host may take to end the stream after the last answer."""


class HostGoneError(Exception):
    """The stream ended without a stop."""


class Serving:
    """Serves until the outbox is closed and everything is out, or the stream ends."""

    def __init__(self, stream: HookStream, dispatcher: Dispatcher) -> None:
        self._stream = stream
        self._dispatcher = dispatcher
        self._outbox = dispatcher.outbox
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._slices: Iterator[None] | None = None
        self._in_turn = False
        self._flush_asked = False
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Raises HostGoneError, ProtocolError."""
        self._stream.came = self._came
        self._stream.freed = self._flush
        self._outbox.ready = self._answers_wait
        self._came()
        try:
            await self._done
        finally:
            self._stream.ignore()

    # Calls in

    def _came(self) -> None:
        """From the connection: a frame, or the end."""
        if self._slices is None:
            self._context.run(self._turn)

    def _turn(self) -> None:
        self._in_turn = True
        try:
            more = self._take_slice()
        except Exception as error:  # noqa: BLE001 - ends the process, which then tells it
            self._fail(error)
            return
        finally:
            self._in_turn = False
        self._flush()
        if more:
            self._loop.call_soon(self._turn, context=self._context)
        elif self._stream.over is not None:
            self._stream_ended(*self._stream.over)

    def _take_slice(self) -> bool:
        """Decide all small batches that are here, or one slice. True: there is more to do."""
        frames = self._stream.frames
        while True:
            if self._slices is None:
                if not frames:
                    return False
                self._slices = self._take_frame(frames.popleft())
            for _ in self._slices:
                return True
            self._slices = None

    def _take_frame(self, data: bytes) -> Iterator[None]:
        try:
            frame = plugin_pb2.HostFrame.FromString(data)
        except DecodeError:
            raise ProtocolError("a frame is not a HostFrame") from None
        if frame.HasField("calls"):
            return self._dispatcher.deliver(frame.calls)
        if not frame.HasField("secrets"):
            raise ProtocolError("expected calls or secrets after the handshake")
        self._dispatcher.take_secrets(frame.secrets)
        return iter(())

    # Answers out

    def _answers_wait(self) -> None:
        """From the outbox, for each answer."""
        if not self._in_turn and not self._flush_asked:
            self._flush_asked = True
            self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flush_asked = False
        self._flush()

    def _flush(self) -> None:
        stream, outbox = self._stream, self._outbox
        while not stream.blocked:
            frame = outbox.take()
            if frame is None:
                if outbox.closed and not stream.half_closed:
                    stream.finish()
                    self._loop.call_later(LAST_ANSWER_S, self._end)
                return
            stream.send(frame.SerializeToString())

    # The end

    def _stream_ended(self, status: str, text: str) -> None:
        if self._outbox.closed:
            self._end()
        elif status == "OK":
            self._fail(HostGoneError("the host closed the stream"))
        else:
            self._fail(HostGoneError(f"{status}: {text}"))

    def _end(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
