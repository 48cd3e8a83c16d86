"""uvicorn's HTTP protocol with bounds on what a request may bring before its body is read."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Longest request line with headers, give or take one read of the socket."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Most bytes of one request, its chunked encoding and trailers counted in. Bodies have a lower
limit of their own, which answers properly."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a head, or a whole message, is longer than it may be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0
        self._limit = MAX_HEAD_BYTES

    def data_received(self, data: bytes) -> None:
        if self._received > self._limit:
            self.send_400_response("Request header fields too large.")
            return
        self._received += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._received = 0
        self._limit = MAX_HEAD_BYTES
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._limit = _MAX_MESSAGE_BYTES
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._received = 0
        self._limit = MAX_HEAD_BYTES
        super().on_message_complete()
