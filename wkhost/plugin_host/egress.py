"""One plugin's way out: an HTTP proxy that knows CONNECT only, on a Unix socket of its generation.

Theory of operation. The name is checked against the allow-list before it is looked up, so a lookup
tells nobody anything. All its addresses are looked up once, in a thread, and all must be public or
opened by the operator; then exactly those addresses are dialled, so a second answer of the name
server changes nothing. What passes through is not looked at. A tunnel ends when neither side has
sent for `idle_s`, when either side breaks, or with its generation.

Every decision is counted in the plugin's record; a denial is told to `denied` as well.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from struct import Struct

import msgspec
import structlog
import trio

from wkhost.plugin_host.egress_records import EgressRecord
from wkhost.plugin_host.egress_rules import (
    Address,
    EgressRefusedError,
    EgressRules,
    Target,
    address_of,
    own_addresses,
)
from wkhost.plugin_host.pace import Pace

MAX_CONNECTIONS = 32
_CHUNK = 64 * 1024
_PEER_CREDENTIALS = Struct("3i")

log = structlog.get_logger(__name__)

Resolver = Callable[[str, int], Sequence[Address]]
"""Looks up a name; may block; raises OSError."""


class EgressLimits(msgspec.Struct, frozen=True):
    """Bounds of one generation. `bytes_per_s` counts both directions of all tunnels together."""

    max_connections: int = MAX_CONNECTIONS
    bytes_per_s: int = 8 * 1024 * 1024
    header_bytes: int = 4096
    header_s: float = 5.0
    resolve_s: float = 5.0
    dial_s: float = 10.0
    idle_s: float = 60.0
    max_addresses: int = 8


DEFAULT_LIMITS = EgressLimits()
_resolvers = trio.CapacityLimiter(8)
"""Threads of all plugins together that look up names; one that hangs keeps its place."""


def resolve(host: str, port: int) -> Sequence[Address]:
    """Look up a name the usual way."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


class _DeniedError(Exception):
    """A request ends here: the status for the plugin, the outcome for the counters."""

    def __init__(self, status: str, outcome: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.outcome = outcome


class EgressProxy:
    """See the module. `may_connect(pid)` says whether a peer belongs to the plugin."""

    def __init__(
        self,
        path: Path,
        rules: EgressRules,
        *,
        may_connect: Callable[[int], bool],
        denied: Callable[[str], None],
        record: EgressRecord | None = None,
        limits: EgressLimits = DEFAULT_LIMITS,
        resolver: Resolver = resolve,
        own: Callable[[], frozenset[Address]] = own_addresses,
    ) -> None:
        self.path = path
        self.record = EgressRecord() if record is None else record
        self.rules = rules
        self._may_connect = may_connect
        self._denied = denied
        self._limits = limits
        self._resolver = resolver
        self._own = own
        self._open = 0
        self._pace = Pace(limits.bytes_per_s, limits.bytes_per_s)
        """Over all tunnels; a burst is one second's worth."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. `started` once the plugin can connect."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            raw.bind(str(self.path))
            self.path.chmod(0o600)
            raw.listen(self._limits.max_connections)
            listener = trio.socket.from_stdlib_socket(raw)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    peer, _ = await listener.accept()
                    nursery.start_soon(self._serve, trio.SocketStream(peer))

    async def _serve(self, plugin: trio.SocketStream) -> None:
        """One connection of the plugin: the border at which its faults stop."""
        async with plugin:
            raw = plugin.socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
            )
            pid = _PEER_CREDENTIALS.unpack(raw)[0]
            if not self._may_connect(pid):
                self._deny("wrong_peer", f"process {pid} is not the plugin's")
                return
            if self._open >= 2 * self._limits.max_connections:
                # Half of them wait for an answer that says so; the rest gets none.
                self._deny("too_many", "connections")
                return
            self._open += 1
            self.record.open += 1
            try:
                await self._tunnel(plugin)
            except (trio.BrokenResourceError, trio.TooSlowError, OSError):
                self.record.ended["broken"] += 1
            finally:
                self._open -= 1
                self.record.open -= 1

    async def _tunnel(self, plugin: trio.SocketStream) -> None:
        try:
            authority, early = await self._read_request(plugin)
            if self._open > self._limits.max_connections:
                text = f"more than {self._limits.max_connections} connections"
                raise _DeniedError("503 Service Unavailable", "too_many", text)
            target, far = await self._connect(authority)
        except _DeniedError as denial:
            self._deny(denial.outcome, str(denial))
            body = f"{denial}\n".encode("ascii", "backslashreplace")
            head = f"HTTP/1.1 {denial.status}\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: text/plain\r\nConnection: close\r\n\r\n"
            with trio.move_on_after(self._limits.header_s):
                await plugin.send_all(head.encode() + body)
            return
        async with far:
            self.record.accept(str(target))
            with trio.fail_after(self._limits.idle_s):
                await plugin.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                if early:
                    await far.send_all(early)
                    self._sent(len(early))
            await self._splice(plugin, far)

    def _deny(self, outcome: str, text: str) -> None:
        self.record.refused[outcome] += 1
        self._denied(f"{outcome}: {text}")

    async def _read_request(self, plugin: trio.SocketStream) -> tuple[str, bytes]:
        """Return the authority of a CONNECT and the bytes that came after its head."""
        data = b""
        with trio.fail_after(self._limits.header_s):
            while b"\r\n\r\n" not in data:
                if len(data) >= self._limits.header_bytes:
                    raise _DeniedError(
                        "431 Request Header Fields Too Large",
                        "bad_request",
                        f"the head is longer than {self._limits.header_bytes} bytes",
                    )
                chunk = await plugin.receive_some(self._limits.header_bytes - len(data))
                if not chunk:
                    raise trio.BrokenResourceError("it left before its request")
                data += chunk
        head, _, early = data.partition(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] != b"CONNECT" or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            text = "only CONNECT is served; plain http:// has no way out"
            raise _DeniedError("405 Method Not Allowed", "bad_request", text)
        return words[1].decode("latin-1"), early

    async def _connect(self, authority: str) -> tuple[Target, trio.SocketStream]:
        """Check, look up, check again, dial. Returns the entry that allows it, too."""
        try:
            host, port, target = self.rules.check_name(authority)
        except EgressRefusedError as error:
            raise _DeniedError("403 Forbidden", "not_listed", str(error)) from error
        addresses, own = await self._look_up(host, port)
        try:
            self.rules.check_addresses(host, port, addresses, own)
        except EgressRefusedError as error:
            raise _DeniedError("403 Forbidden", "address_refused", str(error)) from error
        with trio.move_on_after(self._limits.dial_s):
            for address in addresses[: self._limits.max_addresses]:
                far = await _dial(address, port)
                if far is not None:
                    return target, far
        raise _DeniedError("502 Bad Gateway", "unreachable", f"{host}:{port} cannot be reached")

    async def _look_up(self, host: str, port: int) -> tuple[Sequence[Address], frozenset[Address]]:
        literal = address_of(host)

        def work() -> tuple[Sequence[Address], frozenset[Address]]:
            return [literal] if literal else self._resolver(host, port), self._own()

        try:
            with trio.fail_after(self._limits.resolve_s):
                return await trio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=_resolvers
                )
        except trio.TooSlowError:
            text = f"{host}: no answer of the name server in time"
            raise _DeniedError("504 Gateway Timeout", "unresolved", text) from None
        except (OSError, UnicodeError) as error:
            text = f"{host}: cannot be looked up"
            raise _DeniedError("502 Bad Gateway", "unresolved", text) from error

    # --- the tunnel -----------------------------------------------------------------------------

    async def _splice(self, plugin: trio.SocketStream, far: trio.SocketStream) -> None:
        idle = trio.CancelScope(deadline=trio.current_time() + self._limits.idle_s)
        with idle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, plugin, far, idle, self._sent)
                nursery.start_soon(self._pump, far, plugin, idle, self._received)
        if idle.cancelled_caught:
            self.record.ended["idle"] += 1

    def _sent(self, size: int) -> None:
        self.record.sent_bytes += size

    def _received(self, size: int) -> None:
        self.record.received_bytes += size

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        idle: trio.CancelScope,
        count: Callable[[int], None],
    ) -> None:
        """Carry one direction to its end. Only what was taken by the other side counts as life."""
        try:
            while data := await source.receive_some(_CHUNK):
                wait_s = self._pace.take(trio.current_time(), len(data))
                if wait_s:
                    await trio.sleep(wait_s)
                await sink.send_all(data)
                count(len(data))
                idle.deadline = trio.current_time() + self._limits.idle_s
            with suppress(OSError):
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The other direction has nobody to talk to either.
            idle.deadline = min(idle.deadline, trio.current_time() + 0.1)


async def _dial(address: Address, port: int) -> trio.SocketStream | None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.connect((str(address), port))
        except BaseException:
            sock.close()
            raise
    except OSError:
        return None
    return trio.SocketStream(sock)
