"""The kernel's end of the link: a Unix socket on which peers ask a `Service`.

Theory of operation. Each connection has a reader and a writer. The reader takes what one read
brought and hands all of it to the service at once: sends through `send_nowait`, which costs no
task, everything else as one task in the server's nursery (so a request outlives its connection;
its answer is then dropped). Answers are encoded as they come and counted in bytes; the writer
sends all that is there in one frame. Full queues: at `max_in_flight` unanswered requests the
connection is not read until some are answered; a peer that lets `max_outbox_bytes` of answers pile
up, or takes none for `write_timeout_s`, is closed.
"""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Protocol

import msgspec
import structlog
import trio

from wkhost.link.contract import (
    API_WORKER,
    LINK_PROTOCOL,
    Actor,
    Error,
    ErrorKind,
    Request,
    Response,
    SendMessage,
    Sent,
)
from wkhost.link.errors import LinkProtocolError, LinkRefusedError
from wkhost.link.framing import (
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    MAX_ITEM_BYTES,
    FrameReader,
    Welcome,
    encode_item,
    pack_batches,
    pack_handshake,
    read_hello,
    request_decoder,
)
from wkhost.link.roles import ALLOWED
from wkhost.link.runtime import check_private

log = structlog.get_logger(__name__)

_PEER_CREDENTIALS = Struct("3i")
_NOBODY = Actor("", -1, 0)
_READ_BYTES = 64 * 1024
_DISPATCHES_PER_TURN = 256
"""Requests handed over before other tasks get their turn."""


class Service(Protocol):
    """What the link needs of a running kernel."""

    def send_nowait(self, request: SendMessage, done: Callable[[Sent | Error], None]) -> None:
        """Start one send; call `done` exactly once, now or later, on the trio thread."""

    async def handle(self, request: Request, actor: Actor) -> Response:
        """Answer any other request. Expected failures come back as `Error`."""


class LinkLimits(msgspec.Struct, frozen=True):
    """Bounds per connection, but for `max_connections`."""

    max_connections: int = 64
    max_in_flight: int = 1024
    max_outbox_bytes: int = 64 * 1024 * 1024
    handshake_timeout_s: float = 5.0
    write_timeout_s: float = 30.0


DEFAULT_LIMITS = LinkLimits()


def no_plugins(pid: int) -> bool:
    """The `is_plugin_process` of a server that runs no plugins."""
    return False


def ignore_refusal(actor: Actor, reason: str) -> None:
    """The `refused` of a server that keeps no record of them besides its log."""


class LinkServer:
    """Listens on `path` (mode 0600, in a private directory) and serves until cancelled.

    `api_token` is what a peer must show to be an API worker. `is_plugin_process(pid)` says whether
    a process is, or descends from, a plugin: such peers are refused whatever they know. `refused`
    is told of every peer that is not admitted, with the reason.
    """

    def __init__(
        self,
        path: Path,
        service: Service,
        *,
        api_token: str,
        is_plugin_process: Callable[[int], bool] = no_plugins,
        refused: Callable[[Actor, str], None] = ignore_refusal,
        limits: LinkLimits = DEFAULT_LIMITS,
    ) -> None:
        self._path = path
        self._service = service
        self._api_token = api_token
        self._is_plugin_process = is_plugin_process
        self.refused = refused
        self._limits = limits
        self._connections: set[_Connection] = set()
        self._requests = 0
        self._refused_peers = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve. `started()` once peers can connect. The socket is removed at the end."""
        listener = self._listen()
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    peer, _ = await listener.accept()
                    if len(self._connections) >= self._limits.max_connections:
                        log.warning("connection refused: too many are open")
                        peer.close()
                        continue
                    connection = _Connection(self, peer, nursery)
                    self._connections.add(connection)
                    nursery.start_soon(self._serve, connection)
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)

    def statistics(self) -> dict[str, int]:
        """Connections and requests in flight now; requests and refused peers since the start."""
        return {
            "connections": len(self._connections),
            "in_flight": sum(c.in_flight for c in self._connections),
            "outbox_bytes": sum(c.outbox_bytes for c in self._connections),
            "requests": self._requests,
            "refused_peers": self._refused_peers,
        }

    def _listen(self) -> trio.socket.SocketType:
        check_private(self._path.parent)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return trio.socket.from_stdlib_socket(listener)

    async def _serve(self, connection: _Connection) -> None:
        """One peer from handshake to end: the border at which its faults stop."""
        try:
            await connection.run()
        except* LinkRefusedError as refusals:
            self._refused_peers += 1
            log.warning("peer refused", peer=connection.peer, error=_texts(refusals))
        except* LinkProtocolError as faults:
            log.warning("peer closed", peer=connection.peer, error=_texts(faults))
        except* (OSError, trio.BrokenResourceError, trio.TooSlowError) as losses:
            log.info("peer lost", peer=connection.peer, error=_texts(losses))
        except* Exception as errors:
            log.error("peer failed", peer=connection.peer, exc_info=errors)
        finally:
            connection.close()
            self._connections.discard(connection)

    def admit(self, pid: int, uid: int, hello_role: str, token: str, protocol: int) -> None:
        """Check a peer's handshake. Raises: LinkRefusedError with a sentence for the peer."""
        if protocol != LINK_PROTOCOL:
            raise LinkRefusedError(
                f"this server speaks link protocol {LINK_PROTOCOL}, the peer {protocol}; "
                "use the same version of wkhost on both ends"
            )
        if hello_role not in ALLOWED:
            raise LinkRefusedError(f"there is no role {hello_role!r}")
        if uid not in (os.geteuid(), 0):
            raise LinkRefusedError("the link belongs to the server's user")
        if pid <= 0 or self._is_plugin_process(pid):
            raise LinkRefusedError("plugins and unknown processes may not use the link")
        if hello_role == API_WORKER and not hmac.compare_digest(
            token.encode(), self._api_token.encode()
        ):
            raise LinkRefusedError("wrong token for the role of an API worker")

    def dispatch(self, connection: _Connection, number: int, request: Request) -> None:
        """Start one request; its answer goes to `connection` when it is there."""
        self._requests += 1
        if type(request) is SendMessage:
            try:
                self._service.send_nowait(request, partial(connection.answer, number))
            except Exception:
                log.exception("request failed", request="SendMessage")
                connection.answer(number, _unexpected(request))
        elif type(request) in ALLOWED[connection.actor.role]:
            connection.tasks.start_soon(self._handle, connection, number, request)
        else:
            text = f"{type(request).__name__} is not open to the role {connection.actor.role}"
            connection.answer(number, Error(ErrorKind.FORBIDDEN, text))

    async def _handle(self, connection: _Connection, number: int, request: Request) -> None:
        """One request: the border at which an unexpected failure of it stops."""
        answer: Response
        try:
            answer = await self._service.handle(request, connection.actor)
        except Exception:
            log.exception("request failed", request=type(request).__name__)
            answer = _unexpected(request)
        connection.answer(number, answer)

    @property
    def limits(self) -> LinkLimits:
        return self._limits


def _unexpected(request: Request) -> Error:
    name = type(request).__name__
    return Error(ErrorKind.INTERNAL, f"{name} failed inside the server; see its log")


def _texts(errors: BaseExceptionGroup[Exception]) -> str:
    return "; ".join(str(error) or type(error).__name__ for error in _leaves(errors))


def _leaves(errors: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class _Connection:
    """One peer: its socket, who it is and the answers that wait for it."""

    def __init__(
        self, server: LinkServer, peer_socket: trio.socket.SocketType, tasks: trio.Nursery
    ) -> None:
        self.actor = _NOBODY
        self.peer = "unknown"
        self.tasks = tasks
        self.in_flight = 0
        self.outbox_bytes = 0
        self._server = server
        self._socket = peer_socket
        self._stream = trio.SocketStream(peer_socket)
        self._frames = FrameReader(MAX_HELLO_BYTES)
        self._outbox: list[bytes] = []
        self._answers_ready = trio.Event()
        self._room = trio.Event()
        self._scope = trio.CancelScope()
        self._closed = False

    async def run(self) -> None:
        waiting = await self._handshake()
        self._frames.max_body_bytes = MAX_FRAME_BYTES
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(waiting)
                nursery.cancel_scope.cancel()

    def close(self) -> None:
        self._closed = True
        self._outbox.clear()
        self._socket.close()

    def answer(self, number: int, answer: Response) -> None:
        """Queue an answer. Called once per request; after the peer has gone it is dropped."""
        if self._closed:
            return
        try:
            item = encode_item(number, answer)
        except (TypeError, ValueError, OverflowError):
            name = type(answer).__name__
            log.exception("answer cannot be encoded", answer=name)
            text = f"the answer {name} cannot be encoded; see the server's log"
            item = encode_item(number, Error(ErrorKind.INTERNAL, text))
        if len(item) > MAX_ITEM_BYTES:
            text = f"the answer is longer than {MAX_FRAME_BYTES} bytes; ask for less at a time"
            item = encode_item(number, Error(ErrorKind.INVALID, text))
        self._outbox.append(item)
        self.outbox_bytes += len(item)
        self._answers_ready.set()
        if self.outbox_bytes > self._server.limits.max_outbox_bytes:
            log.warning("peer closed: it does not take its answers", peer=self.peer)
            self._closed = True
            self._scope.cancel()

    async def _handshake(self) -> list[bytes]:
        """Admit the peer; return the bodies that came together with its `Hello`."""
        bodies: list[bytes] = []
        with trio.fail_after(self._server.limits.handshake_timeout_s):
            while not bodies:
                data = await self._socket.recv(MAX_HELLO_BYTES)
                if not data:
                    raise LinkProtocolError("it left before the handshake")
                bodies = self._frames.feed(data)
            hello = read_hello(bodies[0])
            raw = self._socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
            )
            pid, uid, _ = _PEER_CREDENTIALS.unpack(raw)
            self.peer = f"pid {pid} as {hello.role!r}"
            try:
                self._server.admit(pid, uid, hello.role, hello.token, hello.protocol)
            except LinkRefusedError as refusal:
                self._server.refused(Actor(hello.role, uid, pid), str(refusal))
                answer = Error(ErrorKind.FORBIDDEN, str(refusal))
                await self._stream.send_all(pack_handshake(answer))
                raise
            self.actor = Actor(hello.role, uid, pid)
            await self._stream.send_all(pack_handshake(Welcome(LINK_PROTOCOL)))
        return bodies[1:]

    async def _read(self, bodies: list[bytes]) -> None:
        decoder = request_decoder()
        max_in_flight = self._server.limits.max_in_flight
        dispatch = self._server.dispatch
        turn = 0
        while True:
            for body in bodies:
                for number, request in decoder.decode(body):
                    if self.in_flight >= max_in_flight:
                        await self._wait_room()
                    self.in_flight += 1
                    dispatch(self, number, request)
                    turn += 1
                    if turn % _DISPATCHES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
            data = await self._socket.recv(_READ_BYTES)
            if not data:
                return
            bodies = self._frames.feed(data)

    async def _wait_room(self) -> None:
        while self.in_flight >= self._server.limits.max_in_flight:
            self._room = trio.Event()
            await self._room.wait()

    async def _write(self) -> None:
        """Send all answers that are there, as one frame where they fit."""
        while True:
            await self._answers_ready.wait()
            self._answers_ready = trio.Event()
            items, self._outbox = self._outbox, []
            with trio.fail_after(self._server.limits.write_timeout_s):
                await self._stream.send_all(pack_batches(items))
            self.outbox_bytes -= sum(map(len, items))
            self.in_flight -= len(items)
            self._room.set()
