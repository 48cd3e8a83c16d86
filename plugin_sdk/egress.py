"""The plugin's end of its way out: a port on 127.0.0.1 in front of the host's proxy socket.

HTTP clients know proxies by host and port, not by Unix socket, so a thread of this process carries
bytes between the two. `start` points the usual variables at it; clients that honour HTTPS_PROXY
need nothing else. The proxy knows CONNECT only, so plain http:// addresses are answered with 405.
"""

from __future__ import annotations

import asyncio
import os
import threading

_CHUNK = 64 * 1024
_START_S = 5.0
_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


def start(socket_path: str) -> int:
    """Forward a free port to the proxy from now on; return the port. Raises OSError."""
    forwarder = _Forwarder(socket_path)
    thread = threading.Thread(target=forwarder.run, name="egress", daemon=True)
    thread.start()
    forwarder.ready.wait(_START_S)
    if not forwarder.port:
        raise OSError(f"egress: no port on 127.0.0.1 ({forwarder.problem or 'too slow'})")
    for name in _VARIABLES:
        os.environ[name] = f"http://127.0.0.1:{forwarder.port}"
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ""
    return forwarder.port


class _Forwarder:
    """Listens and carries, in a loop of its own, so that a busy plugin does not hold it up."""

    def __init__(self, socket_path: str) -> None:
        self.ready = threading.Event()
        self.port = 0
        self.problem = ""
        self._socket_path = socket_path

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - told by `start`, in the thread that asked
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.ready.set()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await server.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._socket_path)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except OSError:
        # One end is gone: the other must not wait for it.
        sink.close()
