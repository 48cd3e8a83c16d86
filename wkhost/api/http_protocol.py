"""uvicorn's HTTP protocol with bounds on what a request may bring, and one write per answer."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Longest request line with headers, give or take one read of the socket."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Most bytes of one request, its chunked encoding and trailers counted in. Bodies have a lower
limit of their own, which answers properly."""
REQUEST_S = 60.0
"""Longest time from a request's first byte (or the connection) to its last."""


class _CorkedTransport:
    """Joins what is written in one turn of the loop into one write.

    uvicorn writes the head and the body of an answer apart, which costs a system call and a
    packet more each time.
    """

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(data)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a head, or a whole message, is longer than it may be.

    Closes when a request does not arrive in time; uvicorn itself waits for ever.
    """

    request_s = REQUEST_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0
        self._limit = MAX_HEAD_BYTES
        self._partial = True
        """A request is on its way in. Only then the deadline runs: most come in one read."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _CorkedTransport(transport, self.loop))
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._received > self._limit:
            self.send_400_response("Request header fields too large.")
            return
        self._received += len(data)
        self._partial = True
        super().data_received(data)
        if self._partial and self._deadline is None and not self.transport.is_closing():
            self._start_deadline()

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.request_s, self.transport.close)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def on_message_begin(self) -> None:
        self._partial = True
        self._received = 0
        self._limit = MAX_HEAD_BYTES
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._limit = _MAX_MESSAGE_BYTES
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._partial = False
        self._stop_deadline()
        self._received = 0
        self._limit = MAX_HEAD_BYTES
        super().on_message_complete()
