"""The state of one call on the wire."""

from __future__ import annotations

from collections import deque

from wkhost.plugin_host.grpc.methods import Method
from wkhost.plugin_host.grpc.status import Metadata, StatusCode


class Stream:
    """Both directions of a call. Owned by the wire; its two sides fill the parts they use."""

    __slots__ = (
        "answered",
        "deadline",
        "final",
        "headers_sent",
        "held",
        "id",
        "mark",
        "metadata",
        "method",
        "need",
        "part",
        "path",
        "queue",
        "queued",
        "receive_window",
        "remote_closed",
        "request",
        "send_window",
        "uncredited",
    )

    def __init__(self, stream_id: int, window: int) -> None:
        self.id = stream_id
        self.path = ""
        self.method: Method | None = None
        self.metadata: Metadata = ()
        self.deadline: float | None = None
        # Receiving: a partial message, the bytes it needs, bytes not yet given back.
        self.part = bytearray()
        self.need = 0
        self.request: bytes | None = None
        self.held = 0
        self.receive_window = 0
        self.uncredited = 0
        self.remote_closed = False
        # Sending: frames cut from `queue`, then the trailers of `final`.
        self.send_window = window
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.mark = 0
        self.headers_sent = False
        self.final: tuple[StatusCode, str] | None = None
        self.answered = False
