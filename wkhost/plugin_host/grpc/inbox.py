"""The receiving side of a connection: DATA frames to messages, and our own windows.

A call's window reopens as its bytes arrive, since a message may be larger than it; what the
call can make us hold is bounded by the message size. The connection's window reopens when
messages are consumed: a stream's when it was handed over, a unary request when its call ends.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.frames import FLAG_PADDED, window_frame
from wkhost.plugin_host.grpc.methods import BidiMethod, Limits
from wkhost.plugin_host.grpc.status import StatusCode
from wkhost.plugin_host.grpc.stream import Stream

_MESSAGE_PREFIX = Struct(">BL")
_PREFIX_BYTES = 5


class Inbox:
    """Cuts messages out of DATA.

    `deliver` takes each message and says whether the call goes on; `fail` ends a call with a
    status. Window updates are appended to `output`.
    """

    def __init__(
        self,
        limits: Limits,
        output: bytearray,
        deliver: Callable[[Stream, bytes], bool],
        fail: Callable[[Stream, StatusCode, str], None],
    ) -> None:
        self._limits = limits
        self._output = output
        self._deliver = deliver
        self._fail = fail
        self._held = 0
        self._window = limits.connection_window
        self._uncredited = 0

    def data(self, stream: Stream, data: bytes, start: int, stop: int, flags: int) -> int:
        """Take the body of a DATA frame, `data[start:stop]`; returns its size without padding."""
        size = stop - start
        self._window -= size
        stream.receive_window -= size
        if stream.receive_window < 0 or self._window < 0:
            raise RemoteProtocolError("DATA beyond the flow control window")
        stream.held += size
        self._held += size
        if flags & FLAG_PADDED:
            if size == 0 or data[start] >= size:
                raise RemoteProtocolError("DATA padding exceeds its frame")
            stop -= data[start]
            start += 1
        stream.uncredited += size
        if stream.uncredited >= self._limits.stream_window // 2:
            stream.receive_window += stream.uncredited
            self._output += window_frame(stream.id, stream.uncredited)
            stream.uncredited = 0
        if stream.final is None:
            self._messages(stream, data, start, stop)
        if stream.final is not None or (not stream.part and isinstance(stream.method, BidiMethod)):
            self.release(stream)
        return stop - start

    def release(self, stream: Stream) -> None:
        """What the call held is consumed: reopen the connection's window."""
        held, stream.held = stream.held, 0
        self._held -= held
        self._credit(held)

    def discard(self, size: int) -> None:
        """The body of a DATA frame came too late for its call."""
        self._window -= size
        if self._window < 0:
            raise RemoteProtocolError("DATA beyond the flow control window")
        self._credit(size)

    def _credit(self, size: int) -> None:
        self._uncredited += size
        if self._uncredited >= self._limits.connection_window // 12:
            self._window += self._uncredited
            self._output += window_frame(0, self._uncredited)
            self._uncredited = 0

    def _messages(self, stream: Stream, data: bytes, start: int, stop: int) -> None:
        """Hand over the messages that end in `data[start:stop]`; keep a partial one."""
        while start < stop:
            if stream.part or stop - start < _PREFIX_BYTES:
                start = self._join(stream, data, start, stop)
                if start < 0:
                    return
                continue
            if not self._announce(stream, data, start):
                return
            end = start + stream.need
            if end > stop:
                stream.part += data[start:stop]
                return
            stream.need = 0
            if not self._deliver(stream, data[start + _PREFIX_BYTES : end]):
                return
            start = end

    def _join(self, stream: Stream, data: bytes, start: int, stop: int) -> int:
        """Continue a partial message; returns where it stopped reading, -1 to end the call."""
        part = stream.part
        want = (stream.need or _PREFIX_BYTES) - len(part)
        end = min(stop, start + want)
        part += data[start:end]
        if self._held > self._limits.max_buffered:
            self._fail(stream, StatusCode.RESOURCE_EXHAUSTED, "too many unfinished requests")
            return -1
        if end - start < want:
            return end
        if not stream.need:
            if not self._announce(stream, part, 0):
                return -1
            if stream.need > _PREFIX_BYTES:
                return end
        stream.part = bytearray()
        stream.need = 0
        return end if self._deliver(stream, bytes(memoryview(part)[_PREFIX_BYTES:])) else -1

    def _announce(self, stream: Stream, data: bytes | bytearray, start: int) -> bool:
        """Read a message prefix into `need`; False when it ends the call."""
        compressed, length = _MESSAGE_PREFIX.unpack_from(data, start)
        method = stream.method
        assert method is not None
        if compressed:
            self._fail(stream, StatusCode.UNIMPLEMENTED, "compressed messages are not accepted")
            return False
        if length > method.max_message_bytes:
            message = f"a message of {length} bytes exceeds {method.max_message_bytes}"
            self._fail(stream, StatusCode.RESOURCE_EXHAUSTED, message)
            return False
        stream.need = length + _PREFIX_BYTES
        return True
