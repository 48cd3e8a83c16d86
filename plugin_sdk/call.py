"""One call on a connection: its state there, and what its owner hears of it."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Carrier(Protocol):
    """The connection, as far as a call needs it."""

    paused: bool
    """The socket takes no more for now."""

    def send(self, call: Call, message: bytes) -> None: ...

    def pump(self, call: Call) -> bool:
        """Send what waits as far as the windows allow. True: nothing of it is left."""

    def cancel(self, call: Call) -> None: ...


class Call:
    """One call. A subclass hears of it through the three callbacks, which must not raise.

    `send` and `finish` may be used until `ended`, and are ignored afterwards.
    """

    def __init__(self, connection: Carrier) -> None:
        self.connection = connection
        self.id = 0
        self.send_window = 0
        self.waiting: deque[memoryview] = deque()
        self.half_closed = False
        self.end_sent = False
        self.part = bytearray()
        self.headers: dict[bytes, bytes] = {}
        self.uncredited = 0

    def received(self, message: bytes) -> None:
        """One whole message came."""

    def drained(self) -> None:
        """Everything that waited is on its way."""

    def ended(self, status: str, text: str) -> None:
        """The call is over, with the name of its status; nothing is called after this."""

    @property
    def blocked(self) -> bool:
        """Something waits: hold what comes next until `drained`."""
        return bool(self.waiting) or self.connection.paused

    def send(self, message: bytes) -> None:
        self.connection.send(self, message)

    def finish(self) -> None:
        """Close our half once everything is sent."""
        self.half_closed = True
        self.connection.pump(self)

    def cancel(self) -> None:
        """Tell the peer that nobody waits any more, and forget the call."""
        self.connection.cancel(self)
