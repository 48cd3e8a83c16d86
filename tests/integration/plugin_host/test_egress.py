"""A plugin's way out: real sockets, a real HTTPS server, a name server of the test's own."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.plugin_host.kit import running, until, write_plugin
from wkhost.hooks.verdict import Refuse
from wkhost.plugin_host.egress import EgressLimits, EgressProxy, Resolver
from wkhost.plugin_host.egress_rules import Address, EgressRules, parse_private, parse_target

LOOPBACK = ip_address("127.0.0.1")
PUBLIC = ip_address("8.8.8.8")
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
Handler = Callable[[trio.SocketStream], Awaitable[None]]


def certificate(folder: Path) -> Path:
    """Write a certificate of api.test with its key; return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api.test")])
    now = datetime.now(UTC)
    names = [x509.DNSName("api.test"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = key.private_bytes(serialization.Encoding.PEM, *form)
    path = folder / "cert.pem"
    path.write_bytes(pem + cert.public_bytes(serialization.Encoding.PEM))
    return path


class Far:
    """A server on 127.0.0.1 that counts who came."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0


@asynccontextmanager
async def far_server(handler: Handler) -> AsyncIterator[Far]:
    far = Far()

    async def serve(stream: trio.SocketStream) -> None:
        far.connections += 1
        # The test has seen what it wanted.
        with suppress(trio.BrokenResourceError, ssl.SSLError, OSError):
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[Any] = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        )
        far.port = listeners[0].socket.getsockname()[1]
        yield far
        nursery.cancel_scope.cancel()


async def answer_https(pem: Path, stream: trio.SocketStream) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    await tls.receive_some(4096)
    await tls.send_all(BODY)
    await tls.aclose()


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


class Proxy:
    """A proxy in front of a far server: "api.test" and what the test lists besides."""

    def __init__(self, proxy: EgressProxy, denied: list[str], port: int) -> None:
        self.proxy = proxy
        self.denied = denied
        self.port = port
        self.streams: list[trio.SocketStream] = []

    async def open(self, request: bytes | None = None, host: str = "api.test") -> trio.SocketStream:
        stream = await trio.open_unix_socket(str(self.proxy.path))
        self.streams.append(stream)
        if request is None:
            authority = f"{host}:{self.port}"
            request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        await stream.send_all(request)
        return stream

    async def status(self, request: bytes | None = None, host: str = "api.test") -> int:
        """Return the status of the answer to a request."""
        with trio.fail_after(5):
            stream = await self.open(request, host)
            status = int((await head(stream)).split()[1])
            if status != 200:
                await stream.aclose()
            return status


async def head(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some(4096)
        assert chunk, data
        data += chunk
    return data


@asynccontextmanager
async def proxy_to(
    folder: Path,
    port: int,
    *,
    resolver: Resolver = lambda host, port: [LOOPBACK],
    limits: EgressLimits | None = None,
    private: tuple[str, ...] = ("127.0.0.1",),
    may_connect: Callable[[int], bool] = lambda pid: pid == os.getpid(),
    own: Callable[[], frozenset[Address]] = frozenset,
    listed: Sequence[str] = ("api.test:{port}", "*.wild.test:{port}", "127.0.0.1:{port}"),
) -> AsyncIterator[Proxy]:
    denied: list[str] = []
    allowed = tuple(parse_target(text.format(port=port)) for text in listed)
    proxy = EgressProxy(
        folder / "e",
        EgressRules(allowed, tuple(map(parse_private, private))),
        may_connect=may_connect,
        denied=denied.append,
        limits=limits or EgressLimits(),
        resolver=resolver,
        own=own,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        it = Proxy(proxy, denied, port)
        try:
            yield it
        finally:
            for stream in it.streams:
                stream.socket.close()
            nursery.cancel_scope.cancel()


async def test_an_https_server_is_reached_and_its_certificate_is_the_plugins_business(
    tmp_path: Path,
) -> None:
    pem = certificate(tmp_path)
    async with (
        far_server(partial(answer_https, pem)) as far,
        proxy_to(tmp_path, far.port) as it,
    ):
        with trio.fail_after(5):
            stream = await it.open()
            assert b"200" in await head(stream)
            context = ssl.create_default_context(cafile=str(pem))
            tls = trio.SSLStream(stream, context, server_hostname="api.test", https_compatible=True)
            await tls.send_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            answer = b"".join([chunk async for chunk in tls])
        assert answer.endswith(b"hello")
        assert sum(it.proxy.record.accepted.values()) == 1
        assert it.denied == []


async def test_a_name_that_is_not_listed_is_never_looked_up(tmp_path: Path) -> None:
    looked_up: list[str] = []

    def resolver(host: str, port: int) -> Sequence[Address]:
        looked_up.append(host)
        return [LOOPBACK]

    async with far_server(echo) as far, proxy_to(tmp_path, far.port, resolver=resolver) as it:
        for host in ("secret-data.evil.test", "api.test.evil.test", "wild.test", "8.8.8.8"):
            assert await it.status(host=host) == 403
        request = f"CONNECT api.test:{far.port + 1} HTTP/1.1\r\n\r\n".encode()
        assert await it.status(request) == 403
        assert looked_up == []
        assert await it.status(host="a.b.WILD.test.") == 200
        assert looked_up == ["a.b.wild.test"]
        assert it.proxy.record.refused["not_listed"] == 5
        assert all(text.startswith("not_listed: ") for text in it.denied)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["169.254.169.254"],
        ["10.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["100.64.0.1"],
        ["::1"],
        [],
    ],
)
async def test_a_name_with_an_address_inside_is_refused_and_nothing_is_dialled(
    tmp_path: Path, addresses: list[str]
) -> None:
    found = [ip_address(address) for address in addresses]
    async with (
        far_server(echo) as far,
        proxy_to(tmp_path, far.port, resolver=lambda host, port: found, private=()) as it,
    ):
        assert await it.status() == 403
        assert far.connections == 0
        assert it.proxy.record.refused["address_refused"] == 1


async def test_a_name_that_changes_its_address_between_check_and_use_gains_nothing(
    tmp_path: Path,
) -> None:
    """Only one look-up happens per connection, and what it gave is what is dialled."""
    answers = [[LOOPBACK], [ip_address("10.0.0.1")], [LOOPBACK]]
    calls = 0

    def rebinding(host: str, port: int) -> Sequence[Address]:
        nonlocal calls
        calls += 1
        return answers[calls - 1]

    async with (
        far_server(echo) as far,
        proxy_to(tmp_path, far.port, resolver=rebinding, private=("127.0.0.1",)) as it,
    ):
        assert [await it.status() for _ in range(3)] == [200, 403, 200]
        assert calls == 3
        # It accepts a moment after it was reached.
        await until(lambda: far.connections == 2)


async def test_this_machines_addresses_are_refused_public_ones_too(tmp_path: Path) -> None:
    async with proxy_to(
        tmp_path, 443, resolver=lambda host, port: [PUBLIC], own=lambda: frozenset({PUBLIC})
    ) as it:
        assert await it.status() == 403
        assert "an address of this machine" in it.denied[0]


async def test_a_literal_needs_the_operators_consent(tmp_path: Path) -> None:
    async with far_server(echo) as far:
        async with proxy_to(tmp_path, far.port, private=()) as it:
            for host in ("127.0.0.1", "2130706433", "0x7f.1"):
                assert await it.status(host=host) == 403
        (tmp_path / "e").unlink()
        async with proxy_to(tmp_path, far.port, private=(f"127.0.0.1:{far.port}",)) as it:
            assert await it.status(host="0x7f.1") == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://api.test/ HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\n\r\n", 405),
        (b"CONNECT api.test HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT u:p@api.test:1 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT \xff:1 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT a:1 HTTP/2\r\n\r\n", 405),
        (b"\r\n\r\n", 405),
        (b"CONNECT a:1 HTTP/1.1\r\nX: " + b"y" * 5000, 431),
    ],
)
async def test_other_requests_are_answered_and_end(
    tmp_path: Path, request_: bytes, status: int
) -> None:
    async with proxy_to(tmp_path, 443) as it:
        assert await it.status(request_) == status


async def test_the_reason_in_an_answer_is_one_harmless_line(tmp_path: Path) -> None:
    async with proxy_to(tmp_path, 443) as it:
        stream = await it.open(b"CONNECT \xff\x1b[2J:1 HTTP/1.1\r\n\r\n")
        answer = await head(stream)
        assert b"\x1b" not in answer
        assert b"\xff" not in answer


async def test_a_process_that_is_not_the_plugins_is_closed_unheard(tmp_path: Path) -> None:
    async with proxy_to(tmp_path, 443, may_connect=lambda pid: False) as it:
        stream = await it.open()
        with trio.fail_after(5):
            assert await _rest(stream) == b""
        assert it.proxy.record.refused["wrong_peer"] == 1
        assert f"process {os.getpid()}" in it.denied[0]


async def test_slow_heads_and_idle_tunnels_end(tmp_path: Path) -> None:
    limits = EgressLimits(header_s=0.1, idle_s=0.2)
    async with far_server(echo) as far, proxy_to(tmp_path, far.port, limits=limits) as it:
        with trio.fail_after(5):
            slow = await it.open(b"CONNECT api.test")
            assert await _rest(slow) == b""
            tunnel = await it.open()
            await head(tunnel)
            assert await _rest(tunnel) == b""
            await until(lambda: it.proxy.record.open == 0)
        assert it.proxy.record.ended["idle"] == 1
        assert it.proxy.record.ended["broken"] == 1


async def test_a_far_end_that_does_not_read_ends_the_tunnel(tmp_path: Path) -> None:
    async def deaf(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    limits = EgressLimits(idle_s=0.3)
    async with far_server(deaf) as far, proxy_to(tmp_path, far.port, limits=limits) as it:
        tunnel = await it.open()
        await head(tunnel)

        async def send_for_ever() -> None:
            while True:
                await tunnel.send_all(b"x" * 65536)

        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await send_for_ever()
        assert it.proxy.record.ended["idle"] == 1


async def _rest(stream: trio.SocketStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in stream])
    except trio.BrokenResourceError:
        return b""


async def test_connections_are_bounded(tmp_path: Path) -> None:
    limits = EgressLimits(max_connections=3)
    async with far_server(echo) as far, proxy_to(tmp_path, far.port, limits=limits) as it:
        streams = [await it.open() for _ in range(3)]
        for stream in streams:
            assert b"200" in await head(stream)
        assert await it.status() == 503
        await streams.pop().aclose()
        await until(lambda: it.proxy.record.open < 3)
        assert await it.status() == 200


async def test_bytes_per_second_are_bounded(tmp_path: Path) -> None:
    async def flood(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"x" * 65536)

    limits = EgressLimits(bytes_per_s=1_000_000)
    async with far_server(flood) as far, proxy_to(tmp_path, far.port, limits=limits) as it:
        tunnel = await it.open()
        await head(tunnel)
        begin, size = trio.current_time(), 0
        while size < 3_000_000:
            size += len(await tunnel.receive_some(65536))
        # A burst of one second is allowed.
        assert trio.current_time() - begin > 1.5


async def test_a_resolver_that_hangs_is_given_up(tmp_path: Path) -> None:
    gate = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang(host: str, port: int) -> Sequence[Address]:
        trio.from_thread.run(gate.wait, trio_token=token)
        return [LOOPBACK]

    limits = EgressLimits(resolve_s=0.1)
    async with proxy_to(tmp_path, 443, resolver=hang, limits=limits) as it:
        assert await it.status() == 504
        gate.set()


async def test_names_that_do_not_exist_and_ports_that_are_closed_are_told(tmp_path: Path) -> None:
    def unknown(host: str, port: int) -> Sequence[Address]:
        raise OSError("no such name")

    async with far_server(echo) as far:
        closed = far.port
    async with proxy_to(tmp_path, closed) as it:
        assert await it.status() == 502
    (tmp_path / "e").unlink()
    async with proxy_to(tmp_path, closed, resolver=unknown) as it:
        assert await it.status() == 502
        assert it.proxy.record.refused["unresolved"] == 1


async def test_bytes_pass_unchanged_both_ways_and_ends_are_passed_on(tmp_path: Path) -> None:
    async with far_server(echo) as far, proxy_to(tmp_path, far.port) as it:
        data = os.urandom(500_000)
        authority = f"api.test:{far.port}".encode()
        tunnel = await it.open(b"CONNECT " + authority + b" HTTP/1.1\r\n\r\nearly")
        got = (await head(tunnel)).partition(b"\r\n\r\n")[2]
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await tunnel.send_all(data)
                    await tunnel.send_eof()

                nursery.start_soon(send)
                got += await _rest(tunnel)
        assert got == b"early" + data
        assert it.proxy.record.sent_bytes == it.proxy.record.received_bytes == len(got)


async def test_counts_name_entries_of_the_list_and_never_what_was_asked_for(
    tmp_path: Path,
) -> None:
    async with far_server(echo) as far, proxy_to(tmp_path, far.port) as it:
        for host in ("a.wild.test", "b.wild.test"):
            assert await it.status(host=host) == 200
        assert await it.status(host="leak.evil.test") == 403
        record = it.proxy.record
        assert record.accepted == {f"*.wild.test:{far.port}": 2}
        assert {reason: n for reason, n in record.refused.items() if n} == {"not_listed": 1}
        await until(lambda: record.open == 2)


CALLER = """
import os, ssl, urllib.request
from plugin_sdk import Plugin, Refuse, hook

class Caller(Plugin):
    @hook(blocking=True)
    def send(self, message):
        url = message.payload.decode()
        folder = os.path.dirname(__file__)
        context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
        try:
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                return Refuse(200, answer.read().decode())
        except Exception as error:
            return Refuse(201, f"{type(error).__name__} {error}"[:200])
"""


async def test_a_contained_plugin_reaches_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    """With the real sandbox, SDK and client library: only HTTPS_PROXY leads out."""
    pem = certificate(tmp_path)
    async with (
        far_server(partial(answer_https, pem)) as far,
        running(tmp_path, egress_private=(parse_private("127.0.0.1"),)) as it,
    ):
        extra = f'[capabilities]\negress = ["127.0.0.1:{far.port}"]\n'
        folder = write_plugin(tmp_path / "src", "caller", CALLER, extra=extra)
        cert = pem.read_bytes()
        (Path(folder) / "ca.pem").write_bytes(cert[cert.index(b"-----BEGIN CERT") :])
        await it.install(folder)
        target = it.target("caller")
        urls = [
            f"https://127.0.0.1:{far.port}/",
            f"https://localhost:{far.port}/",
            "https://169.254.169.254/",
            "https://example.com/",
        ]
        answers = await it.recorder.wait(
            *(it.send(target, url.encode()) for url in urls), within_s=20
        )
        texts = [answer.text if isinstance(answer, Refuse) else str(answer) for answer in answers]
        assert texts[0] == "hello"
        for text in texts[1:]:
            assert "403" in text
        assert far.connections == 1
        (figures,) = (await it.host.figures()).plugins
        assert figures.egress is not None
        assert figures.egress.accepted == {f"127.0.0.1:{far.port}": 1}
        assert figures.egress.refused["not_listed"] == 3
        assert figures.egress.received_bytes > len(pem.read_bytes()) // 2 > 0
        before = msgspec.structs.replace(figures.egress, open=0)
        await it.host.reload("caller")
        (figures,) = (await it.host.figures()).plugins
        assert figures.egress == before, "counted over generations"
    records = it.host.auditor.log.read()
    denied = [r["details"] for r in records if r["action"] == "egress_denied"]
    assert {each["what"].split(":")[1].strip() for each in denied} == {
        "localhost",
        "169.254.169.254",
        "example.com",
    }


async def test_the_operator_may_open_a_host_that_the_manifest_does_not_name(
    tmp_path: Path,
) -> None:
    pem = certificate(tmp_path)
    async with far_server(partial(answer_https, pem)) as far:
        target = parse_target(f"127.0.0.1:{far.port}")
        private = (parse_private("127.0.0.1"),)
        for allow, words in (({"caller": [target]}, "hello"), ({}, "Error")):
            folder = tmp_path / words
            async with running(folder, egress_allow=allow, egress_private=private) as it:
                source = write_plugin(folder / "src", "caller", CALLER)
                (Path(source) / "ca.pem").write_bytes(pem.read_bytes())
                await it.install(source)
                call = it.send(it.target("caller"), f"https://127.0.0.1:{far.port}/".encode())
                (answer,) = await it.recorder.wait(call, within_s=20)
                assert isinstance(answer, Refuse)
                assert words in answer.text
