"""A TCP relay between a client and a server that loses what a test wants lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

_CHUNK = 65536


class Tap:
    """Relays to `target`. While `deaf`, what the server says is thrown away; while held, new
    connections wait before they reach the server."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.address: tuple[str, int] = ("", 0)
        self.deaf = False
        self._released = trio.Event()
        self._released.set()

    @classmethod
    @asynccontextmanager
    async def running(cls, target: tuple[str, int]) -> AsyncIterator[Tap]:
        tap = cls(target)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        tap.address = listener.socket.getsockname()[:2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, tap._relay, [listener])
            yield tap
            nursery.cancel_scope.cancel()

    def hold(self) -> None:
        self._released = trio.Event()

    def release(self) -> None:
        self._released.set()

    async def _relay(self, client: trio.SocketStream) -> None:
        await self._released.wait()
        with suppress(OSError, trio.BrokenResourceError):
            async with (
                client,
                await trio.open_tcp_stream(*self.target) as server,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._pump, client, server, nursery.cancel_scope)
                await self._pump(server, client, nursery.cancel_scope, from_server=True)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        scope: trio.CancelScope,
        *,
        from_server: bool = False,
    ) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in source:
                if not (from_server and self.deaf):
                    await sink.send_all(data)
        scope.cancel()
