"""The link's asyncio end, for the API worker: pipelined requests, reconnecting.

Requests asked in one turn of the loop leave in one frame. Each answer finds its future by id.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import structlog

from wkhost.link.contract import LINK_PROTOCOL, Request, Response
from wkhost.link.errors import (
    LinkBusyError,
    LinkError,
    LinkLostError,
    LinkRefusedError,
)
from wkhost.link.framing import (
    MAX_ITEM_BYTES,
    FrameReader,
    Hello,
    check_welcome,
    encode_item,
    pack_batches,
    pack_handshake,
    response_decoder,
)

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.02
_LAST_BACKOFF_S = 1.0
_EXPIRY_TICKS_PER_TIMEOUT = 20


class AsyncLinkClient:
    """Asks a kernel over the link. One per event loop; `run` keeps it connected.

    Full queues: over `max_in_flight` unanswered requests, or `max_buffered_bytes` not yet taken by
    the kernel, `ask` raises LinkBusyError.
    """

    def __init__(
        self,
        path: Path,
        *,
        role: str,
        token: str = "",
        timeout_s: float = 10.0,
        max_in_flight: int = 8192,
        max_buffered_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._path = path
        self._hello = pack_handshake(Hello(LINK_PROTOCOL, role, token))
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._max_buffered_bytes = max_buffered_bytes
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()
        self._backoff_s = _FIRST_BACKOFF_S

    async def run(self) -> None:
        """Stay connected until cancelled. Raises: LinkRefusedError when the server says no."""
        self._backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._connect_once()
                log.warning("connection to the kernel lost; connecting again")
            except LinkRefusedError:
                raise
            except (OSError, LinkError, TimeoutError) as error:
                log.warning("no connection to the kernel", error=str(error) or repr(error))
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, _LAST_BACKOFF_S)

    async def _connect_once(self) -> None:
        """Connect, serve requests, return when the connection is lost."""
        loop = asyncio.get_running_loop()
        connection = _Connection(self._hello, self._timeout_s)
        try:
            await loop.create_unix_connection(lambda: connection, os.fspath(self._path))
            async with asyncio.timeout(self._timeout_s):
                await connection.welcome
            self._connection = connection
            self._connected.set()
            self._backoff_s = _FIRST_BACKOFF_S
            await connection.lost
        finally:
            self._connection = None
            self._connected.clear()
            connection.abort()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    def ask(self, request: Request) -> asyncio.Future[Response]:
        """Send a request with the next frame; the future gives its answer, `Error`s included.

        Raises (here or from the future): LinkLostError when there is no connection, it broke or
        no answer came within `timeout_s`; LinkBusyError when too much waits already.
        """
        connection = self._connection
        if connection is None or connection.lost.done():
            raise LinkLostError("there is no connection to the kernel", sent=False)
        if (
            len(connection.pending) >= self._max_in_flight
            or connection.buffered_bytes() > self._max_buffered_bytes
        ):
            raise LinkBusyError("too many requests wait for the kernel")
        return connection.ask(request)


class _Connection(asyncio.Protocol):
    """One connection: handshake, then frames both ways until it is lost."""

    def __init__(self, hello: bytes, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._hello = hello
        self._timeout_s = timeout_s
        self._frames = FrameReader()
        self._decoder = response_decoder()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._next_number = 0
        self._expiry: asyncio.TimerHandle | None = None
        self.pending: dict[int, tuple[asyncio.Future[Response], float]] = {}
        """Id -> the future and its deadline; ids and deadlines ascend together."""
        self.welcome: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def ask(self, request: Request) -> asyncio.Future[Response]:
        number = self._next_number
        item = encode_item(number, request)
        if len(item) > MAX_ITEM_BYTES:
            raise LinkBusyError("the request is longer than a frame of the link")
        self._next_number = number + 1
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(item)
        self._outbox_bytes += len(item)
        future: asyncio.Future[Response] = self._loop.create_future()
        self.pending[number] = (future, self._loop.time() + self._timeout_s)
        return future

    def buffered_bytes(self) -> int:
        transport = self._transport
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        return self._outbox_bytes + waiting

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._fail_pending("the link to the kernel was lost")

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._transport = stream
        stream.write(self._hello)
        self._tick()

    def data_received(self, data: bytes) -> None:
        try:
            bodies = self._frames.feed(data)
            if bodies and not self.welcome.done():
                check_welcome(bodies.pop(0))
                self.welcome.set_result(None)
            for body in bodies:
                self._take(body)
        except LinkError as error:
            if not self.welcome.done():
                self.welcome.set_exception(error)
            else:
                log.error("the kernel's answer cannot be read", error=str(error))
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if not self.welcome.done():
            self.welcome.set_exception(LinkLostError("closed at the handshake", sent=False))
        if not self.lost.done():
            self.lost.set_result(None)
        self._fail_pending("the link to the kernel was lost")

    # --- inside ---

    def _take(self, body: bytes) -> None:
        pending = self.pending
        for number, answer in self._decoder.decode(body):
            entry = pending.pop(number, None)
            if entry is not None and not entry[0].done():
                entry[0].set_result(answer)

    def _flush(self) -> None:
        items, self._outbox, self._outbox_bytes = self._outbox, [], 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack_batches(items))

    def _tick(self) -> None:
        """Give up on requests whose time is over; the oldest come first."""
        now = self._loop.time()
        while self.pending:
            number, (_, deadline) = next(iter(self.pending.items()))
            if deadline > now:
                break
            future, _ = self.pending.pop(number)
            if not future.done():
                text = f"no answer from the kernel within {self._timeout_s:g} s"
                future.set_exception(LinkLostError(text, sent=True))
        interval_s = self._timeout_s / _EXPIRY_TICKS_PER_TIMEOUT
        self._expiry = self._loop.call_later(interval_s, self._tick)

    def _fail_pending(self, text: str) -> None:
        entries, self.pending = self.pending, {}
        for future, _ in entries.values():
            if not future.done():
                future.set_exception(LinkLostError(text, sent=True))
