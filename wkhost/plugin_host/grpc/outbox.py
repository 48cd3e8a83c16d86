"""The sending side of a connection: messages to DATA frames under the peer's flow control.

h2 is not asked to frame DATA: one DATA frame a batch is the hot path, and its windows are two
additions here. Nothing is encoded that the peer's windows do not allow, and at most
`max_output` bytes wait for the socket; the rest stays queued with its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.frames import (
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    FRAME_HEADER,
    MAX_WINDOW,
)
from wkhost.plugin_host.grpc.stream import Stream

_MESSAGE_PREFIX = Struct(">BL")
_FRAMED_MESSAGE = Struct(">HBBBLBL")
"""A frame header and a message prefix in one."""
_MAX_FRAME = 64 * 1024
"""DATA frames are cut at this even if the peer takes larger ones, for fairness between calls."""


class Outbox:
    """Encoded bytes for the socket, and the windows that decide what may be encoded."""

    def __init__(self, max_output: int, drained: Callable[[Stream], None]) -> None:
        self.output = bytearray()
        self.queued = 0
        self.initial_window = DEFAULT_WINDOW
        self.max_frame = DEFAULT_FRAME
        self._window = DEFAULT_WINDOW
        self._max_output = max_output
        self._drained = drained
        self._blocked: dict[int, Stream] = {}
        self._taken = 0

    def message(self, stream: Stream, data: bytes) -> None:
        """Send or queue one gRPC message (uncompressed)."""
        length = len(data)
        size = length + 5
        output = self.output
        if (
            size <= stream.send_window
            and size <= self._window
            and size <= self.max_frame
            and not stream.queue
            and len(output) < self._max_output
        ):
            output += _FRAMED_MESSAGE.pack(size >> 8, size & 255, DATA, 0, stream.id, 0, length)
            output += data
            stream.send_window -= size
            self._window -= size
            stream.mark = self._taken + len(output)
            return
        stream.queue.append(memoryview(_MESSAGE_PREFIX.pack(0, length) + data))
        stream.queued += size
        self.queued += size
        self._blocked[stream.id] = stream
        self.pump()

    def unsent(self, stream: Stream) -> int:
        """Bytes of the stream that the socket has not taken (other streams' may be among them)."""
        return stream.queued + max(0, stream.mark - self._taken)

    def sent(self, size: int) -> None:
        """The socket took the first `size` bytes of `output`."""
        del self.output[:size]
        self._taken += size
        if self._blocked:
            self.pump()

    def forget(self, stream: Stream) -> None:
        """Drop what the stream has queued; what is encoded already still goes out."""
        self.queued -= stream.queued
        stream.queued = 0
        stream.queue.clear()
        self._blocked.pop(stream.id, None)

    def open_window(self, stream: Stream | None, increment: int) -> bool:
        """Apply a WINDOW_UPDATE; False when the stream's window overflows (a stream error)."""
        if stream is None:
            self._window += increment
            if self._window > MAX_WINDOW:
                raise RemoteProtocolError("the connection's flow control window exceeds 2^31-1")
        else:
            stream.send_window += increment
            if stream.send_window > MAX_WINDOW:
                return False
        if self._blocked:
            self.pump()
        return True

    def pump(self) -> None:
        """Encode queued data, a frame of each blocked stream in turn, as far as windows allow."""
        progress = True
        while progress and self._blocked:
            progress = False
            for stream in list(self._blocked.values()):
                progress = self._cut_frame(stream) or progress
                if not stream.queue:
                    del self._blocked[stream.id]
                    self._drained(stream)

    def _cut_frame(self, stream: Stream) -> bool:
        output = self.output
        chunk = stream.queue[0]
        size = min(
            len(chunk),
            stream.send_window,
            self._window,
            self.max_frame,
            self._max_output - len(output),
        )
        if size <= 0:
            return False
        output += FRAME_HEADER.pack(size >> 8, size & 255, DATA, 0, stream.id)
        output += chunk[:size]
        stream.send_window -= size
        self._window -= size
        stream.queued -= size
        self.queued -= size
        stream.mark = self._taken + len(output)
        if size == len(chunk):
            stream.queue.popleft()
        else:
            stream.queue[0] = chunk[size:]
        return True

    def peer_settings(self, initial_window: int, max_frame: int, streams: list[Stream]) -> None:
        """Apply the peer's SETTINGS; a changed initial window moves every open stream's."""
        change = initial_window - self.initial_window
        self.initial_window = initial_window
        self.max_frame = min(max_frame, _MAX_FRAME)
        for stream in streams:
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise RemoteProtocolError("SETTINGS raise a stream's window above 2^31-1")
        if self._blocked:
            self.pump()
