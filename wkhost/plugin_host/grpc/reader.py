"""Bytes to frames, with everything that a hostile peer can flood counted before it costs much."""

from __future__ import annotations

from collections.abc import Callable

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.budget import Budget
from wkhost.plugin_host.grpc.frames import (
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    FLAG_END_HEADERS,
    FRAME_HEADER,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
)
from wkhost.plugin_host.grpc.methods import Limits

_WORK_PER_TURN = 256
"""Cost units of one `feed`, about 2 ms; a frame or a message costs one unless named below."""
_WORK = {HEADERS: 16, CONTINUATION: 16, RST_STREAM: 4, SETTINGS: 4}
_EARNED_PER_MESSAGE = 4
_TINY = 8
"""Messages shorter than this earn nothing; on a stream they are charged like control frames."""


class FrameReader:
    """Splits what arrives and calls `on_data(buffer, start, stop, flags, stream_id)` for the body
    of each DATA frame, `on_frame(frame, kind, flags, stream_id)` for each other whole frame.

    Raises RemoteProtocolError on what the peer must not send, however it is cut into reads.
    """

    def __init__(
        self,
        limits: Limits,
        on_data: Callable[[bytes, int, int, int, int], None],
        on_frame: Callable[[bytes, int, int, int], None],
    ) -> None:
        self._on_data = on_data
        self._on_frame = on_frame
        self._max_header_bytes = limits.max_header_bytes
        self._control = Budget(limits.control_burst, limits.control_per_s)
        self._resets = Budget(limits.reset_burst, limits.reset_per_s)
        self._buffer = b""
        self._preface = PREFACE
        self._header_stream = 0
        self._header_bytes = 0
        self._work = 0
        self.backlog = False
        """Whole frames may be left from the last `feed`, which stops after about 2 ms of work."""

    def feed(self, data: bytes, now: float) -> None:
        """Bytes from the peer at time `now` (seconds, any fixed origin)."""
        self._control.refill(now)
        self._resets.refill(now)
        self._work = _WORK_PER_TURN
        if self._buffer:
            data = self._buffer + data
        if self._preface:
            data = self._check_preface(data)
        position, end = 0, len(data)
        while end - position >= 9:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, position)
            length = high << 8 | low
            if length > DEFAULT_FRAME:
                raise RemoteProtocolError(f"a frame of {length} bytes exceeds {DEFAULT_FRAME}")
            stop = position + 9 + length
            if stop > end or self._work <= 0:
                break
            stream_id &= 0x7FFFFFFF
            if self._header_stream and (kind != CONTINUATION or stream_id != self._header_stream):
                raise RemoteProtocolError("another frame inside a header block")
            self._work -= _WORK.get(kind, 1)
            if kind == DATA:
                self._on_data(data, position + 9, stop, flags, stream_id)
            else:
                self._charge_frame(kind, flags, stream_id, length)
                self._on_frame(data[position:stop], kind, flags, stream_id)
            position = stop
        self.backlog = self._work <= 0 and end - position >= 9
        self._buffer = data[position:]

    def charge(self) -> None:
        """The peer made us work for nothing."""
        if not self._control.take():
            raise RemoteProtocolError("a flood of control frames")

    def charge_own_reset(self) -> None:
        """We reset a stream. A peer that provokes this is stopped when it next opens one: the
        reset may run inside a call's own `finish`."""
        self._resets.take()

    def count_call(self, size: int) -> None:
        """The request of a unary call. It earns whatever its size: the concurrency and the pace
        of calls bound how many there are, and grpcio adds windows and probes to each."""
        self._control.earn(2 * _EARNED_PER_MESSAGE + (size >> 12))

    def count_message(self, size: int) -> None:
        """A message, either way, allows for the control frames that it causes (windows, probes)."""
        if size >= _TINY:
            self._control.earn(_EARNED_PER_MESSAGE + (size >> 12))

    def count_stream_message(self, size: int) -> None:
        """A message of a bidirectional call came in."""
        self._work -= 1
        if size < _TINY:
            self.charge()
        else:
            self.count_message(size)

    def _charge_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if kind == HEADERS:
            if self._resets.empty:
                raise RemoteProtocolError("a flood of streams that are reset")
            self._header_bytes = 0
        else:
            self.charge()
        if kind == RST_STREAM and not self._resets.take():
            raise RemoteProtocolError("a flood of reset streams")
        if kind in (HEADERS, CONTINUATION):
            self._header_bytes += length
            if self._header_bytes > self._max_header_bytes:
                raise RemoteProtocolError(f"a header block exceeds {self._max_header_bytes} bytes")
            self._header_stream = 0 if flags & FLAG_END_HEADERS else stream_id

    def _check_preface(self, data: bytes) -> bytes:
        size = min(len(data), len(self._preface))
        if data[:size] != self._preface[:size]:
            raise RemoteProtocolError("the peer does not speak HTTP/2")
        self._preface = self._preface[size:]
        return data[size:]
