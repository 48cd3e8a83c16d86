"""What travels on the plugin's connection: its stream of hooks, and host API calls with their
status codes as Python exceptions. Methods come from the service descriptors, so no list of them is
kept here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from plugin_sdk.call import Call
from plugin_sdk.connection import Connection
from plugin_sdk.errors import BY_CODE, HostError, HostTimeoutError
from plugin_sdk.frames import Headers, request_headers
from plugin_sdk.wire.v1 import host_pb2, plugin_pb2

CALL_TIMEOUT_S = 10
HOST_API = host_pb2.DESCRIPTOR.services_by_name["HostApi"]
_CONNECT = plugin_pb2.DESCRIPTOR.services_by_name["Hooks"].methods_by_name["Connect"]


async def connect(path: str) -> Connection:
    """Dial the host's socket. Raises OSError."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(Connection, path)
    return connection


def _nothing() -> None:
    pass


class HookStream(Call):
    """The one stream of hook calls.

    `frames` holds what came and was not taken yet; `over` is the end's status and text.
    `came` is called when either changes, `freed` when `blocked` ends.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.frames: deque[bytes] = deque()
        self.over: tuple[str, str] | None = None
        self.came: Callable[[], None] = _nothing
        self.freed: Callable[[], None] = _nothing
        connection.open(self, request_headers(f"/{_CONNECT.containing_service.full_name}/Connect"))

    def received(self, message: bytes) -> None:
        self.frames.append(message)
        self.came()

    def drained(self) -> None:
        self.freed()

    def ended(self, status: str, text: str) -> None:
        self.over = status, text
        self.came()

    def ignore(self) -> None:
        """Call nobody back any more."""
        self.came = self.freed = _nothing

    async def read(self) -> bytes | None:
        """Wait for one frame; None at the end. For the time before `came` is somebody's."""
        arrived = asyncio.Event()
        self.came = arrived.set
        while not self.frames and self.over is None:
            await arrived.wait()
            arrived.clear()
        self.ignore()
        return self.frames.popleft() if self.frames else None


class _Unary(Call):
    """One call of HostApi; `answer` gets the message, or the HostError of its status."""

    def __init__(self, connection: Connection, method: str) -> None:
        super().__init__(connection)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._method = method
        self._message: bytes | None = None

    def received(self, message: bytes) -> None:
        self._message = message

    def ended(self, status: str, text: str) -> None:
        if self.answer.done():
            return  # cancelled or timed out just now
        if status == "OK" and self._message is not None:
            self.answer.set_result(self._message)
        else:
            kind = BY_CODE.get(status, HostError)
            self.answer.set_exception(kind(f"{self._method}: {text or status}"))


class GrpcTransport:
    """Unary calls of HostApi on the plugin's own connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._methods: dict[str, tuple[Headers, Any]] = {
            method.name: (
                request_headers(f"/{HOST_API.full_name}/{method.name}", CALL_TIMEOUT_S),
                GetMessageClass(method.output_type).FromString,
            )
            for method in HOST_API.methods
        }

    async def call(self, method: str, request: Any) -> Any:
        headers, read = self._methods[method]
        call = _Unary(self._connection, method)
        self._connection.open(call, headers)
        call.send(request.SerializeToString())
        call.finish()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return read(await call.answer)
        except TimeoutError:
            raise HostTimeoutError(f"{method}: no answer within {CALL_TIMEOUT_S} s") from None
        except DecodeError:
            raise HostError(f"{method}: the answer cannot be read") from None
        finally:
            call.cancel()  # ignored where it has ended
