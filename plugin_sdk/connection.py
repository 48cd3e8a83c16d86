"""A gRPC client's connection over HTTP/2, in the callbacks of an asyncio transport.

Theory of operation. One event brings what the socket has; whole messages go to their call at once,
and what that leads to leaves in one write at the end of the event. No task and no thread stands
between the socket and a call, which is what makes a small batch cheap. Messages that the peer's
windows or the socket do not take wait in their call (`Call.blocked`) and go out in turn. Our own
windows reopen as bytes arrive: what may be under way is bounded by the credit of the hook stream
and by the number of calls.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from plugin_sdk import frames
from plugin_sdk.call import Call
from plugin_sdk.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    MESSAGE_PREFIX,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WireError,
)

STREAM_WINDOW: Final = 4 * 1024 * 1024
CONNECTION_WINDOW: Final = 16 * 1024 * 1024
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_HEADER_TABLE: Final = 4096
_ONLY_INDEXED: Final = 128
"""A block without a smaller byte only points into the table, and leaves it as it is."""
_PREFIX_BYTES: Final = MESSAGE_PREFIX.size
_RESET_STATUS = {frames.CANCEL: "CANCELLED", frames.REFUSED_STREAM: "UNAVAILABLE"}


class Connection(asyncio.Protocol):
    """Made by `loop.create_unix_connection`. `lost` is the reason once it is over, else empty."""

    def __init__(self) -> None:
        self.lost = ""
        self.paused = False
        self._transport: Any = None
        self._buffer = b""
        self._output: list[bytes] = []
        self._in_event = False
        self._calls: dict[int, Call] = {}
        self._next_id = 1
        self._going = False
        self._encoder = Encoder()
        self._blocks: dict[frames.Headers, bytes] = {}
        self._decoder = Decoder(max_header_list_size=MAX_HEADER_BYTES)
        self._block = b""
        self._block_of = 0
        self._block_flags = 0
        self._window = frames.DEFAULT_WINDOW
        self._initial_window = frames.DEFAULT_WINDOW
        self._max_frame = MAX_FRAME
        self._uncredited = 0

    # Calls

    def open(self, call: Call, headers: frames.Headers) -> None:
        """Begin a call. On a connection that is over it ends at once."""
        if self.lost or self._going:
            call.ended("UNAVAILABLE", self.lost or "the host takes no more calls")
            return
        call.id = self._next_id
        call.send_window = self._initial_window
        self._next_id += 2
        self._calls[call.id] = call
        self._write(frames.frame(HEADERS, END_HEADERS, call.id, self._block_of_call(headers)))

    def _block_of_call(self, headers: frames.Headers) -> bytes:
        """Return the block; from a path's third call on one that was made before."""
        block = self._blocks.get(headers)
        if block is None:
            block = self._encoder.encode(headers)
            if min(block) < _ONLY_INDEXED:
                self._blocks.clear()  # the table has grown: what they point at has moved
            else:
                self._blocks[headers] = block
        return block

    def send(self, call: Call, message: bytes) -> None:
        if call.id not in self._calls:
            return
        size = len(message) + _PREFIX_BYTES
        if not call.waiting and size <= min(call.send_window, self._window, self._max_frame):
            call.send_window -= size
            self._window -= size
            header = FRAME_HEADER.pack(size >> 8, size & 255, DATA, 0, call.id)
            self._write(b"".join((header, MESSAGE_PREFIX.pack(0, len(message)), message)))
            return
        call.waiting.append(memoryview(MESSAGE_PREFIX.pack(0, len(message)) + message))
        self.pump(call)

    def pump(self, call: Call) -> bool:
        """Send what waits as far as the windows allow. True: nothing of it is left."""
        waiting = call.waiting
        while waiting:
            chunk = waiting[0]
            size = min(len(chunk), call.send_window, self._window, self._max_frame)
            if size <= 0:
                return False
            self._write(frames.frame(DATA, 0, call.id, bytes(chunk[:size])))
            call.send_window -= size
            self._window -= size
            if size == len(chunk):
                waiting.popleft()
            else:
                waiting[0] = chunk[size:]
        if call.half_closed and not call.end_sent and call.id in self._calls:
            call.end_sent = True
            self._write(frames.frame(DATA, END_STREAM, call.id, b""))
        return True

    def cancel(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is not None:
            self._reset(call, frames.CANCEL)

    def close(self) -> None:
        """Hang up; calls that run end as unavailable."""
        if self._transport is not None:
            self._transport.close()
        self._over("the connection was closed")

    # The transport's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._write(frames.preamble(STREAM_WINDOW, CONNECTION_WINDOW))

    def connection_lost(self, error: Exception | None) -> None:
        self._over(f"the connection was lost: {error}" if error else "the host hung up")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        for call in list(self._calls.values()):
            if not call.waiting:
                call.drained()

    def data_received(self, data: bytes) -> None:
        if self.lost:
            return
        self._in_event = True
        try:
            self._feed(self._buffer + data if self._buffer else data)
        except (WireError, HPACKError) as error:
            self._transport.close()
            self._over(f"the host broke the protocol: {error}")
        finally:
            self._in_event = False
        if self._output:
            output, self._output = self._output, []
            self._transport.write(output[0] if len(output) == 1 else b"".join(output))

    def _write(self, data: bytes) -> None:
        if self._in_event:
            self._output.append(data)
        else:
            self._transport.write(data)

    def _over(self, reason: str) -> None:
        self.lost = self.lost or reason
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.ended("UNAVAILABLE", self.lost)

    # Frames in

    def _feed(self, data: bytes) -> None:
        position, end = 0, len(data)
        while end - position >= 9:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, position)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes exceeds {MAX_FRAME}")
            start = position + 9
            position = start + length
            if position > end:
                position = start - 9
                break
            if kind == DATA and not self._block_of:
                self._data(data, start, start + length, flags, stream_id)
            else:
                self._frame(kind, flags, stream_id & MAX_WINDOW, data[start:position])
            if self.lost:
                return
        self._buffer = data[position:]

    def _data(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        size = stop - start
        self._uncredited += size
        if self._uncredited >= CONNECTION_WINDOW // 2:
            self._write(frames.window_frame(0, self._uncredited))
            self._uncredited = 0
        call = self._calls.get(stream_id)
        if call is None:
            return  # cancelled; its last messages were on their way
        call.uncredited += size
        if call.uncredited >= STREAM_WINDOW // 2:
            self._write(frames.window_frame(stream_id, call.uncredited))
            call.uncredited = 0
        if flags & PADDED:
            data = frames.unpadded(flags & PADDED, data[start:stop])
            start, stop = 0, len(data)
        if call.part:
            call.part += data[start:stop]
            if _is_whole(call.part):
                data, call.part = bytes(call.part), bytearray()
                self._messages(call, data, 0, len(data))
        else:
            self._messages(call, data, start, stop)
        if flags & END_STREAM:
            self._end(call, "UNKNOWN", "the call ended without a status")

    @staticmethod
    def _messages(call: Call, data: bytes, start: int, stop: int) -> None:
        """Hand over the messages in `data[start:stop]`; keep a partial one."""
        while stop - start >= _PREFIX_BYTES:
            compressed, length = MESSAGE_PREFIX.unpack_from(data, start)
            if compressed or length > MAX_MESSAGE_BYTES:
                raise WireError(f"a message of {length} bytes, compressed: {bool(compressed)}")
            after = start + _PREFIX_BYTES + length
            if after > stop:
                break
            call.received(data[start + _PREFIX_BYTES : after])
            start = after
        if start < stop:
            call.part = bytearray(data[start:stop])

    def _frame(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        if self._block_of and (kind != CONTINUATION or stream_id != self._block_of):
            raise WireError("another frame inside a header block")
        if kind == HEADERS:
            self._block_of, self._block_flags = stream_id, flags
            self._block = frames.unpadded(flags, body)
            self._header_block(flags)
        elif kind == CONTINUATION and self._block_of:
            self._block += body
            self._header_block(flags)
        elif kind == WINDOW_UPDATE:
            self._window_update(stream_id, body)
        elif kind == PING:
            if not flags & ACK:
                self._write(frames.frame(PING, ACK, 0, body))
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(body)
        elif kind == RST_STREAM:
            code = int.from_bytes(body[:4], "big")
            call = self._calls.get(stream_id)
            if call is not None:
                status = _RESET_STATUS.get(code, "INTERNAL")
                self._end(call, status, f"the host reset the call (code {code})")
        elif kind == GOAWAY:
            self._goaway(int.from_bytes(body[:4], "big") & MAX_WINDOW)
        elif kind in (CONTINUATION, frames.PUSH_PROMISE):
            raise WireError(f"frame type {kind} is not allowed here")
        # PRIORITY and unknown kinds are ignored.

    def _header_block(self, flags: int) -> None:
        if len(self._block) > MAX_HEADER_BYTES:
            raise WireError(f"a header block exceeds {MAX_HEADER_BYTES} bytes")
        if not flags & END_HEADERS:
            return
        # Read even where nobody wants it: the compression has a state.
        found = dict(self._decoder.decode(self._block, raw=True))
        call = self._calls.get(self._block_of)
        self._block, self._block_of = b"", 0
        if call is None:
            return
        call.headers.update(found)
        if self._block_flags & END_STREAM:
            if call.part:
                self._end(call, "INTERNAL", "the call ended inside a message")
            else:
                self._end(call, *frames.read_status(call.headers))

    def _end(self, call: Call, status: str, text: str) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        if not call.end_sent:
            call.waiting.clear()
            self._reset(call, frames.NO_ERROR if status == "OK" else frames.CANCEL)
        call.ended(status, text)

    def _reset(self, call: Call, code: int) -> None:
        if not self.lost:
            self._write(frames.frame(RST_STREAM, 0, call.id, code.to_bytes(4, "big")))

    def _window_update(self, stream_id: int, body: bytes) -> None:
        increment = int.from_bytes(body[:4], "big") & MAX_WINDOW
        if not stream_id:
            self._window += increment
            self._pump_all()
        elif (call := self._calls.get(stream_id)) is not None:
            call.send_window += increment
            if call.waiting:
                self._pump_all()

    def _settings(self, body: bytes) -> None:
        for key, value in frames.read_settings(body):
            if key == frames.INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.send_window += value - self._initial_window
                self._initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                self._max_frame = value
            elif key == frames.HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, MAX_HEADER_TABLE)
                self._blocks.clear()
        self._write(frames.frame(SETTINGS, ACK, 0, b""))
        self._pump_all()

    def _pump_all(self) -> None:
        for call in list(self._calls.values()):
            if call.waiting and self.pump(call):
                call.drained()

    def _goaway(self, last_stream: int) -> None:
        self._going = True
        for stream_id, call in list(self._calls.items()):
            if stream_id > last_stream:
                del self._calls[stream_id]
                call.ended("UNAVAILABLE", "the host takes no more calls")


def _is_whole(part: bytearray) -> bool:
    """Whether the first message has arrived. A large one comes in many frames."""
    if len(part) < _PREFIX_BYTES:
        return False
    length: int = MESSAGE_PREFIX.unpack_from(part)[1]
    return len(part) >= _PREFIX_BYTES + length or length > MAX_MESSAGE_BYTES
