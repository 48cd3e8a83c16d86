"""The gRPC wire, server side, sans-IO: bytes in, events out, bytes to send.

h2 decompresses and checks request headers and keeps the settings. Frames are split before h2
sees them (reader.py), for two reasons. A hostile peer is stopped before anything is buffered or
decoded. And all else, the frames of every batch and every call, is handled here (outbox.py,
inbox.py) at a fifth of the cost. Nor does h2 see a header block twice: one that only points into
the table of headers means what it meant before, as long as no other kind of block has come since.

Source: RFC 9113 (frames, flow control, errors), gRPC over HTTP/2 (requests, responses).
"""

from __future__ import annotations

from h2.errors import ErrorCodes
from h2.events import Event as H2Event
from h2.events import RemoteSettingsChanged, RequestReceived, StreamEnded
from h2.exceptions import H2Error
from hpack.exceptions import HPACKError

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc.events import (
    CallClosed,
    CallOpened,
    Event,
    HalfClosed,
    MessageReceived,
    UnaryRequest,
)
from wkhost.plugin_host.grpc.frames import (
    CONTINUATION,
    FLAG_ACK,
    FLAG_END_HEADERS,
    FLAG_END_STREAM,
    HEADERS,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    goaway_frame,
    ping_ack_frame,
    preamble,
    reset_frame,
)
from wkhost.plugin_host.grpc.h2state import start_h2
from wkhost.plugin_host.grpc.headers import RESPONSE, headers_frame, trailers, trailers_only
from wkhost.plugin_host.grpc.inbox import Inbox
from wkhost.plugin_host.grpc.methods import BidiMethod, Limits, Methods, UnaryMethod
from wkhost.plugin_host.grpc.outbox import Outbox
from wkhost.plugin_host.grpc.reader import FrameReader
from wkhost.plugin_host.grpc.request import Rejected, Request, check_request
from wkhost.plugin_host.grpc.status import GrpcError, StatusCode
from wkhost.plugin_host.grpc.stream import Stream

_LATE_SMALL = 1024
_MAX_KNOWN = 64
"""Header blocks whose meaning is kept; a plugin has about as many as methods."""


class ServerWire:
    """One connection. `receive` raises RemoteProtocolError once, after which it is closed;
    `output` then holds the GOAWAY that says why."""

    def __init__(self, methods: Methods, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self._methods = methods
        self._h2 = start_h2(limits)
        self._known: dict[bytes, Request] = {}
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._outbox = Outbox(limits.max_output, self._drained)
        self._outbox.output += preamble(limits)
        self._reader = FrameReader(limits, self._data, self._frame)
        self._inbox = Inbox(limits, self._outbox.output, self._deliver, self._fail)
        self._events: list[Event] = []
        self._now = 0.0
        self._draining = False
        self.closed = False

    # --- what the socket side uses ---

    @property
    def output(self) -> bytearray:
        """Bytes for the socket; report what it took with `sent`. Never keep a view of it."""
        return self._outbox.output

    @property
    def backlog(self) -> bool:
        """Frames are left from the last `receive`; call it again (with b"") after a pause."""
        return self._reader.backlog

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
        try:
            self._reader.feed(data, now)
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
            stream.headers_sent = True
            self._outbox.output += headers_frame(stream_id, RESPONSE, end=False)
        self._reader.count_message(len(data))
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
            self._goaway(ErrorCodes.NO_ERROR)

    # --- frames in ---

    def _frame(self, frame: bytes, kind: int, flags: int, stream_id: int) -> None:
        """Every frame but DATA, whole."""
        if kind == WINDOW_UPDATE:
            self._window_update(frame, stream_id)
        elif kind == PING:
            if len(frame) != 17 or stream_id:
                raise RemoteProtocolError("PING must carry 8 bytes on stream 0")
            if not flags & FLAG_ACK:
                self._outbox.output += ping_ack_frame(frame[9:])
        elif kind in (HEADERS, CONTINUATION):
            self._headers(frame, kind, flags, stream_id)
        elif kind == RST_STREAM:
            self._reset_by_peer(frame, stream_id)
        elif kind == SETTINGS:
            for event in self._feed_h2(frame):
                if isinstance(event, RemoteSettingsChanged):
                    settings = self._h2.remote_settings
                    window, size = settings.initial_window_size, settings.max_frame_size
                    self._outbox.peer_settings(window, size, list(self._streams.values()))
        elif kind == PUSH_PROMISE:
            raise RemoteProtocolError("a client must not push")
        # PRIORITY and unknown kinds are ignored. So is GOAWAY: a peer that will open no more
        # calls may still end those that run, and closes the socket itself.

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
            self._reset(stream.id, ErrorCodes.FLOW_CONTROL_ERROR)
            self._over(stream, GrpcError(StatusCode.INTERNAL, "flow control window overflow"))

    def _reset_by_peer(self, frame: bytes, stream_id: int) -> None:
        if len(frame) != 13:
            raise RemoteProtocolError("RST_STREAM must carry 4 bytes")
        self._check_opened("RST_STREAM", stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._over(stream, GrpcError(StatusCode.CANCELLED, "cancelled by the peer"))

    def _check_opened(self, what: str, stream_id: int) -> None:
        if not stream_id & 1 or stream_id > self._last_stream:
            raise RemoteProtocolError(f"{what} on a stream that was never opened")

    # --- requests ---

    def _feed_h2(self, frame: bytes) -> list[H2Event]:
        events = self._h2.receive_data(frame)
        self._flush_h2()
        return events

    def _flush_h2(self) -> None:
        self._outbox.output += self._h2.data_to_send()

    def _headers(self, frame: bytes, kind: int, flags: int, stream_id: int) -> None:
        h2 = self._h2
        block = frame[9:] if kind == HEADERS and flags == FLAG_END_HEADERS else b""
        request = self._known.get(block)
        if request is not None and stream_id & 1 and stream_id > self._last_stream:
            h2.highest_inbound_stream_id = stream_id
            self._open(stream_id, request)
            return
        if not block or min(block) < 128:
            # It may have changed the table that the known ones point into.
            self._known.clear()
            block = b""
        for event in self._feed_h2(frame):
            if isinstance(event, RequestReceived):
                self._request(event, block)
            elif isinstance(event, StreamEnded):
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    self._remote_end(stream)
        h2.streams.clear()

    def _request(self, event: RequestReceived, block: bytes) -> None:
        try:
            request = check_request(event.headers, self._methods)
        except Rejected as rejected:
            stream = self._new_stream(event.stream_id)
            if stream is not None:
                stream.remote_closed = event.stream_ended is not None
                stream.final = (rejected.code, rejected.message)
                self._end(stream, rejected.http_status)
            return
        if block and len(self._known) < _MAX_KNOWN:
            self._known[block] = request
        self._open(event.stream_id, request)

    def _new_stream(self, stream_id: int) -> Stream | None:
        """None: it was refused, alone."""
        self._last_stream = stream_id
        if self._draining or len(self._streams) >= self._limits.max_streams:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return None
        stream = self._streams[stream_id] = Stream(stream_id, self._outbox.initial_window)
        stream.receive_window = self._limits.stream_window
        return stream

    def _open(self, stream_id: int, request: Request) -> None:
        stream = self._new_stream(stream_id)
        if stream is None:
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

    def _data(self, data: bytes, start: int, stop: int, flags: int, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            # An honest peer may have a window full of large ones on their way.
            self._check_opened("DATA", stream_id)
            if stop - start < _LATE_SMALL:
                self._reader.charge()
            self._inbox.discard(stop - start)
            return
        if stream.remote_closed:
            raise RemoteProtocolError("DATA after the end of its request")
        size = self._inbox.data(stream, data, start, stop, flags)
        if flags & FLAG_END_STREAM:
            if stream_id in self._streams:
                self._remote_end(stream)
        elif not size:
            self._reader.charge()

    def _deliver(self, stream: Stream, data: bytes) -> bool:
        if isinstance(stream.method, BidiMethod):
            self._reader.count_stream_message(len(data))
            self._events.append(MessageReceived(stream.id, data))
            return True
        if stream.request is not None:
            self._fail(stream, StatusCode.UNIMPLEMENTED, "a unary call takes one message")
            return False
        self._reader.count_call(len(data))
        stream.request = data
        return True

    # --- ends ---

    def _fail(self, stream: Stream, code: StatusCode, message: str) -> None:
        """End the call now with a status of the wire's own."""
        self._outbox.forget(stream)
        stream.part = bytearray()
        stream.final = (code, message)
        self._end(stream)

    def _drained(self, stream: Stream) -> None:
        if stream.final is not None:
            self._end(stream)

    def _end(self, stream: Stream, http_status: int = 200) -> None:
        """Send the trailers. A peer that is still sending is told to stop."""
        assert stream.final is not None
        code, message = stream.final
        if stream.headers_sent:
            block = trailers(code, message)
        else:
            block = trailers_only(code, message, http_status)
        self._outbox.output += headers_frame(stream.id, block, end=True)
        if not stream.remote_closed:
            self._reset(stream.id, ErrorCodes.NO_ERROR)
        error = None if code == StatusCode.OK else GrpcError(code, message)
        self._over(stream, error)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        self._outbox.output += reset_frame(stream_id, code)
        self._reader.charge_own_reset()

    def _over(self, stream: Stream, error: GrpcError | None) -> None:
        """Forget the call and tell its owner, if it has one."""
        self._streams.pop(stream.id, None)
        self._outbox.forget(stream)
        self._inbox.release(stream)
        if isinstance(stream.method, BidiMethod) or stream.answered:
            self._events.append(CallClosed(stream.id, error))

    def _close(self, error: RemoteProtocolError) -> None:
        self.closed = True
        self._goaway(ErrorCodes.PROTOCOL_ERROR, str(error))

    def _goaway(self, code: ErrorCodes, text: str = "") -> None:
        self._outbox.output += goaway_frame(self._last_stream, code, text)
