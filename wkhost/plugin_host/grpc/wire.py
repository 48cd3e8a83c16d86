"""The gRPC wire, server side, sans-IO: bytes in, events out, bytes to send.

h2 keeps the stream states, the header compression and the settings. Frames are split here
before h2 sees them, for two reasons. A hostile peer is stopped before anything is buffered or
decoded: frame sizes, header blocks and floods are counted first. And DATA, WINDOW_UPDATE and
PING, the frames of every batch, are handled here at a fifth of the cost; h2 learns of the end of
a request by an empty DATA frame.

Source: RFC 9113 (frames, flow control, errors), gRPC over HTTP/2 (requests, responses).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    Event as H2Event,
)
from h2.events import (
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack.exceptions import HPACKError

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.budget import Budget
from wkhost.plugin_host.grpc.methods import BidiMethod, Limits, Methods, UnaryMethod
from wkhost.plugin_host.grpc.outbox import (
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_STREAM,
    FRAME_HEADER,
    MESSAGE_PREFIX,
    Outbox,
    Stream,
)
from wkhost.plugin_host.grpc.request import Rejected, check_request
from wkhost.plugin_host.grpc.status import GrpcError, Metadata, StatusCode, encode_message

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(1, 10)
_ACK = 0x1
_PADDED = 0x8
_END_HEADERS = 0x4
_WORK_PER_TURN = 256
"""Cost units of one `receive`; about 2 ms. A HEADERS frame costs 16, h2's other frames 4."""
_TINY = 8
"""Stream messages shorter than this carry nothing and are charged as control frames."""
_RACE = 128
"""Streams that a peer may open before it has read our SETTINGS; each is refused by itself."""
_RESPONSE_HEADERS = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity"),
)


class CallOpened(msgspec.Struct, gc=False):
    """A bidirectional call begins. `deadline` is on the clock of `now`, None for none."""

    stream_id: int
    method: BidiMethod
    metadata: Metadata
    deadline: float | None


class MessageReceived(msgspec.Struct, gc=False):
    stream_id: int
    data: bytes


class HalfClosed(msgspec.Struct, gc=False):
    """The peer of a bidirectional call will send no more."""

    stream_id: int


class UnaryRequest(msgspec.Struct, gc=False):
    """A unary call with its whole request."""

    stream_id: int
    path: str
    method: UnaryMethod
    metadata: Metadata
    deadline: float | None
    data: bytes


class CallClosed(msgspec.Struct, gc=False):
    """A call that was announced is over; `error` is None after `finish` with OK."""

    stream_id: int
    error: GrpcError | None


Event = CallOpened | MessageReceived | HalfClosed | UnaryRequest | CallClosed


class _H2(H2Connection):
    # Closed streams are remembered to tell late frames from wrong ones; the default is 65,536.
    MAX_CLOSED_STREAMS = 1024


class ServerWire:
    """One connection. `receive` raises RemoteProtocolError once, after which it is closed;
    `output` then holds the GOAWAY that says why."""

    def __init__(self, methods: Methods, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self._methods = methods
        self._h2 = _start_h2(limits)
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._outbox = Outbox(limits.max_output, self._drained)
        self._outbox.output += _preamble(limits)
        self._events: list[Event] = []
        self._buffer = b""
        self._preface: bytes = _PREFACE
        self._header_stream = 0
        self._header_bytes = 0
        self._held = 0
        self._window = limits.connection_window
        self._uncredited = 0
        self._control = Budget(limits.control_burst, limits.control_per_s)
        self._resets = Budget(limits.reset_burst, limits.reset_per_s)
        self._now = 0.0
        self._work = 0
        self._draining = False
        self.backlog = False
        """Frames are left from the last `receive`; call it again (with b"") after a pause."""
        self.closed = False
        self.peer_draining = False

    # --- what the socket side uses ---

    @property
    def output(self) -> bytearray:
        """Bytes for the socket; report what it took with `sent`. Never keep a view of it."""
        return self._outbox.output

    @property
    def output_full(self) -> bool:
        """So much waits for the socket that no more should be read."""
        return len(self._outbox.output) >= 2 * self._limits.max_output

    @property
    def idle(self) -> bool:
        return not self._streams

    def sent(self, size: int) -> None:
        self._outbox.sent(size)

    def data_to_send(self) -> bytes:
        """Everything there is to send, taken as sent."""
        taken = bytearray()
        while self.output:
            taken += self.output
            self.sent(len(self.output))
        return bytes(taken)

    def take_events(self) -> list[Event]:
        """Events that came from sending (calls that ended) since the last `receive`."""
        events = self._events
        if events:
            self._events = []
        return events

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Bytes from the peer at time `now` (seconds, any fixed origin)."""
        if self.closed:
            return []
        self._now = now
        self._control.refill(now)
        self._resets.refill(now)
        self._work = _WORK_PER_TURN
        try:
            self._split(self._buffer + data if self._buffer else data)
        except RemoteProtocolError as error:
            self._close(error)
            raise
        except (H2Error, HPACKError) as error:
            self._flush_h2()
            self.closed = True
            raise RemoteProtocolError(f"HTTP/2: {error}") from error
        return self.take_events()

    # --- what the calls' side uses ---

    def send_message(self, stream_id: int, data: bytes) -> None:
        """Queue one message; ignored when the call is over or finished."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.final is not None or self.closed:
            return
        if not stream.headers_sent:
            self._send_headers(stream, _RESPONSE_HEADERS, end=False)
        self._outbox.message(stream, data)

    def finish(self, stream_id: int, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        """Send the trailers once everything queued is on its way; ignored when over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.final is not None or self.closed:
            return
        stream.final = (code, message)
        if not stream.queue:
            self._end(stream)

    def reply(self, stream_id: int, data: bytes) -> None:
        """Answer a unary call with OK, or RESOURCE_EXHAUSTED where the answer cannot be held."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.method is None:
            return
        if len(data) > stream.method.max_message_bytes:
            message = f"the answer exceeds {stream.method.max_message_bytes} bytes"
            self.finish(stream_id, StatusCode.RESOURCE_EXHAUSTED, message)
        elif self._outbox.queued + len(data) > self._limits.max_unsent:
            message = "too many answers wait for the peer to read"
            self.finish(stream_id, StatusCode.RESOURCE_EXHAUSTED, message)
        else:
            self.send_message(stream_id, data)
            self.finish(stream_id)

    def unsent_bytes(self, stream_id: int) -> int:
        stream = self._streams.get(stream_id)
        return 0 if stream is None else self._outbox.unsent(stream)

    def drain(self) -> None:
        """Announce that no new call is accepted; those that run may end."""
        if not self._draining and not self.closed:
            self._draining = True
            self._goaway(ErrorCodes.NO_ERROR, b"")

    # --- splitting frames ---

    def _split(self, data: bytes) -> None:
        if self._preface:
            data = self._check_preface(data)
        position, end = 0, len(data)
        while end - position >= 9:
            high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(data, position)
            length = high << 8 | low
            stream_id &= 0x7FFFFFFF
            if length > DEFAULT_FRAME:
                raise RemoteProtocolError(f"a frame of {length} bytes exceeds {DEFAULT_FRAME}")
            stop = position + 9 + length
            if stop > end or self._work <= 0:
                break
            if self._header_stream and (kind != _CONTINUATION or stream_id != self._header_stream):
                raise RemoteProtocolError("another frame inside a header block")
            if kind == DATA:
                self._work -= 1
                self._data(data, position, stop, flags, stream_id)
            else:
                self._other(data[position:stop], kind, flags, stream_id)
            position = stop
        self.backlog = self._work <= 0 and end - position >= 9
        self._buffer = data[position:]

    def _check_preface(self, data: bytes) -> bytes:
        size = min(len(data), len(self._preface))
        if data[:size] != self._preface[:size]:
            raise RemoteProtocolError("the peer does not speak HTTP/2")
        self._preface = self._preface[size:]
        return data[size:]

    def _other(self, frame: bytes, kind: int, flags: int, stream_id: int) -> None:
        """Every frame but DATA: charged, then handled here or given to h2."""
        if kind in (_HEADERS, _CONTINUATION):
            self._work -= 16
            self._count_header(frame, kind, flags, stream_id)
            self._feed_h2(frame)
            return
        self._charge()
        if kind == _WINDOW:
            self._work -= 1
            self._window_update(frame, stream_id)
        elif kind == _PING:
            self._work -= 1
            if len(frame) != 17 or stream_id:
                raise RemoteProtocolError("PING must carry 8 bytes on stream 0")
            if not flags & _ACK:
                self._outbox.output += FRAME_HEADER.pack(0, 8, _PING, _ACK, 0) + frame[9:]
        elif kind == _RST:
            self._work -= 4
            self._charge_reset()
            self._feed_h2(frame)
        elif kind == _SETTINGS:
            self._work -= 4
            self._feed_h2(frame)
        elif kind == _GOAWAY:
            # h2 would take no frame after it, but calls that run may still end.
            self.peer_draining = True
        elif kind == _PUSH:
            raise RemoteProtocolError("a client must not push")
        else:
            self._work -= 1  # PRIORITY and unknown kinds are ignored

    def _count_header(self, frame: bytes, kind: int, flags: int, stream_id: int) -> None:
        if kind == _HEADERS:
            self._header_bytes = 0
            if self._resets.empty:
                raise RemoteProtocolError("a flood of streams that are reset")
        else:
            self._charge()
        self._header_bytes += len(frame)
        if self._header_bytes > self._limits.max_header_bytes:
            raise RemoteProtocolError(
                f"a header block exceeds {self._limits.max_header_bytes} bytes"
            )
        self._header_stream = 0 if flags & _END_HEADERS else stream_id

    def _charge(self) -> None:
        if not self._control.take():
            raise RemoteProtocolError("a flood of control frames")

    def _charge_reset(self) -> None:
        if not self._resets.take():
            raise RemoteProtocolError("a flood of reset streams")

    def _window_update(self, frame: bytes, stream_id: int) -> None:
        if len(frame) != 13:
            raise RemoteProtocolError("WINDOW_UPDATE must carry 4 bytes")
        increment = int.from_bytes(frame[9:], "big") & 0x7FFFFFFF
        stream = self._streams.get(stream_id) if stream_id else None
        if stream_id and stream is None:
            if stream_id > self._last_stream:
                raise RemoteProtocolError("WINDOW_UPDATE on a stream that was never opened")
            return
        if increment == 0:
            raise RemoteProtocolError("WINDOW_UPDATE with an increment of 0")
        if not self._outbox.open_window(stream, increment) and stream is not None:
            self._reset(stream, ErrorCodes.FLOW_CONTROL_ERROR)
            self._over(stream, GrpcError(StatusCode.INTERNAL, "flow control window overflow"))

    # --- h2's frames ---

    def _feed_h2(self, frame: bytes) -> None:
        events = self._h2.receive_data(frame)
        self._flush_h2()
        for event in events:
            self._h2_event(event)

    def _flush_h2(self) -> None:
        self._outbox.output += self._h2.data_to_send()

    def _h2_event(self, event: H2Event) -> None:
        if isinstance(event, RequestReceived):
            self._request(event)
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._remote_end(stream)
        elif isinstance(event, StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._over(stream, GrpcError(StatusCode.CANCELLED, "cancelled by the peer"))
        elif isinstance(event, RemoteSettingsChanged):
            settings = self._h2.remote_settings
            window, frame = settings.initial_window_size, settings.max_frame_size
            self._outbox.peer_settings(window, frame, list(self._streams.values()))

    def _request(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        self._last_stream = stream_id
        stream = Stream(stream_id, "", None, self._outbox.initial_window)
        stream.receive_window = self._limits.stream_window
        if self._draining or len(self._streams) >= self._limits.max_streams:
            self._reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        self._streams[stream_id] = stream
        try:
            request = check_request(event.headers, self._methods)
        except Rejected as rejected:
            stream.remote_closed = event.stream_ended is not None
            stream.final = (rejected.code, rejected.message)
            self._end(stream, rejected.http_status)
            return
        stream.path = request.path
        stream.method = request.method
        stream.metadata = request.metadata
        if request.timeout_s is not None:
            stream.deadline = self._now + request.timeout_s
        if isinstance(request.method, BidiMethod):
            self._events.append(
                CallOpened(stream_id, request.method, request.metadata, stream.deadline)
            )

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_closed = True
        if stream.final is not None:
            return
        if stream.part:
            self._fail(stream, StatusCode.INTERNAL, "the stream ended inside a message")
        elif isinstance(stream.method, BidiMethod):
            self._events.append(HalfClosed(stream.id))
        elif isinstance(stream.method, UnaryMethod):
            if stream.request is None:
                self._fail(stream, StatusCode.UNIMPLEMENTED, "a unary call needs one message")
                return
            data, stream.request = stream.request, None
            stream.answered = True
            self._events.append(
                UnaryRequest(
                    stream.id, stream.path, stream.method, stream.metadata, stream.deadline, data
                )
            )

    # --- messages in ---

    def _data(self, data: bytes, position: int, stop: int, flags: int, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_closed:
            # h2 knows how the stream ended, and so whether this is a late frame or a fault.
            self._charge()
            self._feed_h2(data[position:stop])
            return
        size = stop - position - 9
        self._window -= size
        stream.receive_window -= size
        if stream.receive_window < 0 or self._window < 0:
            raise RemoteProtocolError("DATA beyond the flow control window")
        start = position + 9
        if flags & _PADDED:
            if size == 0 or data[start] >= size:
                raise RemoteProtocolError("DATA padding exceeds its frame")
            stop -= data[start]
            start += 1
        if size:
            stream.held += size
            self._held += size
            self._credit_stream(stream, size)
        if start == stop and not flags & END_STREAM:
            self._charge()
        elif stream.final is None:
            self._messages(stream, data, start, stop)
        if not stream.part and (isinstance(stream.method, BidiMethod) or stream.final is not None):
            self._release(stream)
        if flags & END_STREAM and stream_id in self._streams:
            self._feed_h2(FRAME_HEADER.pack(0, 0, DATA, END_STREAM, stream_id))

    def _messages(self, stream: Stream, data: bytes, start: int, stop: int) -> None:
        """Cut the payload of a DATA frame into messages, joining those over several frames."""
        part = stream.part
        while start < stop:
            if part or stop - start < 5:
                want = max(stream.need, 5) - len(part)
                taken = data[start : min(stop, start + want)]
                part += taken
                start += len(taken)
                if len(part) < 5 or (stream.need == 0 and not self._announce(stream, part, 0)):
                    return
                if len(part) < stream.need:
                    if self._held > self._limits.max_buffered:
                        message = "too many unfinished requests"
                        self._fail(stream, StatusCode.RESOURCE_EXHAUSTED, message)
                        return
                    continue
                message_data = bytes(memoryview(part)[5:])
                part = stream.part = bytearray()
            else:
                if not self._announce(stream, data, start):
                    return
                if start + stream.need > stop:
                    part += data[start:stop]
                    return
                message_data = data[start + 5 : start + stream.need]
                start += stream.need
            stream.need = 0
            if not self._deliver(stream, message_data):
                return

    def _announce(self, stream: Stream, data: bytes | bytearray, start: int) -> bool:
        """Read a message prefix into `need`; False when the message ends the call."""
        compressed, length = MESSAGE_PREFIX.unpack_from(data, start)
        method = stream.method
        assert method is not None
        if compressed:
            self._fail(stream, StatusCode.UNIMPLEMENTED, "compressed messages are not accepted")
            return False
        if length > method.max_message_bytes:
            message = f"a message of {length} bytes exceeds {method.max_message_bytes}"
            self._fail(stream, StatusCode.RESOURCE_EXHAUSTED, message)
            return False
        stream.need = length + 5
        return True

    def _deliver(self, stream: Stream, data: bytes) -> bool:
        if isinstance(stream.method, BidiMethod):
            self._work -= 1
            if len(data) < _TINY:
                self._charge()
            else:
                self._control.earn(4)
            self._events.append(MessageReceived(stream.id, data))
            return True
        if stream.request is not None:
            self._fail(stream, StatusCode.UNIMPLEMENTED, "a unary call takes one message")
            return False
        self._control.earn(4)
        stream.request = data
        return True

    def _credit_stream(self, stream: Stream, size: int) -> None:
        """Reopen the stream's window; what it can make us hold is bounded by message size."""
        stream.uncredited += size
        if stream.uncredited >= self._limits.stream_window // 2:
            stream.receive_window += stream.uncredited
            self._outbox.output += _window_frame(stream.id, stream.uncredited)
            stream.uncredited = 0

    def _release(self, stream: Stream) -> None:
        """What the call held is consumed: reopen the connection's window."""
        self._held -= stream.held
        self._uncredited += stream.held
        stream.held = 0
        if self._uncredited >= self._limits.connection_window // 12:
            self._window += self._uncredited
            self._outbox.output += _window_frame(0, self._uncredited)
            self._uncredited = 0

    # --- ends ---

    def _fail(self, stream: Stream, code: StatusCode, message: str) -> None:
        """End the call now with a status of the wire's own."""
        self._outbox.forget(stream)
        stream.part = bytearray()
        stream.final = (code, message)
        self._end(stream)

    def _drained(self, stream: Stream) -> None:
        self._control.earn(4)
        if stream.final is not None:
            self._end(stream)

    def _end(self, stream: Stream, http_status: int = 200) -> None:
        """Send the trailers. A peer that is still sending is told to stop."""
        assert stream.final is not None
        code, message = stream.final
        trailers = [(b"grpc-status", b"%d" % code)]
        if message:
            trailers.append((b"grpc-message", encode_message(message)))
        if not stream.headers_sent:
            first = (b":status", b"%d" % http_status)
            trailers = [first, *_RESPONSE_HEADERS[1:], *trailers]
        self._send_headers(stream, trailers, end=True)
        if not stream.remote_closed:
            self._reset(stream, ErrorCodes.NO_ERROR)
        error = None if code == StatusCode.OK else GrpcError(code, message)
        self._over(stream, error)

    def _send_headers(
        self, stream: Stream, headers: Sequence[tuple[bytes, bytes]], *, end: bool
    ) -> None:
        stream.headers_sent = True
        self._h2.send_headers(stream.id, headers, end_stream=end)
        self._flush_h2()

    def _reset(self, stream: Stream, code: ErrorCodes) -> None:
        self._h2.reset_stream(stream.id, code)
        self._flush_h2()
        # A peer that makes us reset is charged like one that resets, and stopped when it next
        # opens a stream: this may run inside a call's own `finish`.
        self._resets.take()

    def _over(self, stream: Stream, error: GrpcError | None) -> None:
        """Forget the call and tell its owner, if it has one."""
        self._streams.pop(stream.id, None)
        self._outbox.forget(stream)
        self._release(stream)
        if isinstance(stream.method, BidiMethod) or stream.answered:
            self._events.append(CallClosed(stream.id, error))

    def _goaway(self, code: ErrorCodes, text: bytes) -> None:
        size = 8 + len(text)
        self._outbox.output += FRAME_HEADER.pack(size >> 8, size & 255, _GOAWAY, 0, 0)
        self._outbox.output += self._last_stream.to_bytes(4, "big") + int(code).to_bytes(4, "big")
        self._outbox.output += text

    def _close(self, error: RemoteProtocolError) -> None:
        self.closed = True
        self._goaway(ErrorCodes.PROTOCOL_ERROR, str(error).encode()[:128])


def _window_frame(stream_id: int, increment: int) -> bytes:
    return FRAME_HEADER.pack(0, 4, _WINDOW, 0, stream_id) + increment.to_bytes(4, "big")


def _start_h2(limits: Limits) -> H2Connection:
    h2 = _H2(
        H2Configuration(
            client_side=False,
            header_encoding=None,
            # What we send is written above, in the form that these would check and produce.
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    # Our own SETTINGS go out by hand: h2 closes the connection over one stream too many, which
    # a peer may open in good faith before it has read the limit. Here that stream is refused.
    h2.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams + _RACE,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        },
    )
    h2.decoder.max_header_list_size = limits.max_header_bytes
    h2.receive_data(_PREFACE)
    h2.initiate_connection()
    h2.clear_outbound_data_buffer()
    return h2


def _preamble(limits: Limits) -> bytes:
    """Our SETTINGS, and the connection window raised from its default."""
    values = (
        (SettingCodes.MAX_CONCURRENT_STREAMS, limits.max_streams),
        (SettingCodes.INITIAL_WINDOW_SIZE, limits.stream_window),
        (SettingCodes.MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
    )
    body = b"".join(int(k).to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in values)
    frame = FRAME_HEADER.pack(0, len(body), _SETTINGS, 0, 0) + body
    return frame + _window_frame(0, limits.connection_window - DEFAULT_WINDOW)
