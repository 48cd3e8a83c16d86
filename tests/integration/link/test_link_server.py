"""The link's server over real sockets: roles, bounds, batching, hostile peers."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.kit.fake_service import FakeService
from tests.kit.link_server import API_TOKEN, serve_link
from wkhost.errors import ConfigError
from wkhost.link import contract
from wkhost.link.client_sync import SyncLinkClient, connect_operator
from wkhost.link.errors import LinkLostError, LinkRefusedError, NoServerError
from wkhost.link.framing import (
    FrameReader,
    Hello,
    check_welcome,
    encode_item,
    pack_batches,
    pack_handshake,
    response_decoder,
)
from wkhost.link.runtime import LINK_SOCKET, open_runtime_dir, runtime_directory
from wkhost.link.server import LinkLimits, LinkServer

SEND = contract.SendMessage("u", "g", 2, b"hello")


class Peer:
    """A raw peer that writes and reads frames by hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._frames = FrameReader()
        self._bodies: list[bytes] = []

    async def body(self) -> bytes:
        while not self._bodies:
            data = await self.stream.receive_some(1 << 20)
            if not data:
                raise EOFError
            self._bodies = self._frames.feed(data)
        return self._bodies.pop(0)

    async def answers(self) -> list[tuple[int, contract.Response]]:
        return response_decoder().decode(await self.body())

    async def closed(self) -> bool:
        """Read to the end; False when the server keeps the connection for a second."""
        with trio.move_on_after(1):
            try:
                while await self.stream.receive_some(1 << 20):
                    pass
            except trio.BrokenResourceError:
                pass
            return True
        return False


class Peers:
    """Opens raw peers and closes all of them after the test."""

    def __init__(self) -> None:
        self._open: list[trio.socket.SocketType] = []

    async def connect(self, path: Path, hello: Hello | None = None) -> Peer:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        self._open.append(sock)
        await sock.connect(os.fspath(path))
        peer = Peer(trio.SocketStream(sock))
        if hello is not None:
            await peer.stream.send_all(pack_handshake(hello))
        return peer

    async def operator(self, path: Path) -> Peer:
        peer = await self.connect(path, Hello(contract.LINK_PROTOCOL, contract.OPERATOR))
        await peer.body()
        return peer

    def close(self) -> None:
        for sock in self._open:
            sock.close()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    opened = Peers()
    yield opened
    opened.close()


async def ask(path: Path, request: contract.Request, role: str, token: str = "") -> object:
    def blocking() -> contract.Response:
        with SyncLinkClient(path, role=role, token=token, timeout_s=5) as client:
            return client.ask(request)

    return await trio.to_thread.run_sync(blocking)


async def test_the_socket_is_open_to_its_owner_only() -> None:
    async with serve_link() as (path, _):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.fixture
def open_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


async def test_a_directory_open_to_others_is_refused(open_dir: Path) -> None:
    server = LinkServer(open_dir / "l", FakeService(), api_token="t")
    with pytest.raises(ConfigError, match="0700"):
        await server.run()


async def test_requests_split_at_any_byte_are_answered(peers: Peers) -> None:
    async with serve_link() as (path, _):
        peer = await peers.operator(path)
        for byte in pack_batches([encode_item(7, SEND), encode_item(8, contract.GetHealth())]):
            await peer.stream.send_all(bytes([byte]))
        got: dict[int, contract.Response] = {}
        while len(got) < 2:
            got |= dict(await peer.answers())
        assert isinstance(got[7], contract.Sent)
        assert got[8] == contract.Health(ok=True)


async def test_requests_that_come_together_go_on_and_are_answered_together(peers: Peers) -> None:
    service = FakeService()
    async with serve_link(service) as (path, _):
        peer = await peers.operator(path)
        service.hold_sends = True
        await peer.stream.send_all(pack_batches(encode_item(n, SEND) for n in range(200)))
        await _until(lambda: len(service.held) == 200)
        service.release()
        assert [number for number, _ in await peer.answers()] == list(range(200))


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (Hello(99, contract.OPERATOR), "link protocol 1, the peer 99"),
        (Hello(contract.LINK_PROTOCOL, "king"), "no role 'king'"),
        (Hello(contract.LINK_PROTOCOL, contract.API_WORKER, "guess"), "wrong token"),
        (Hello(contract.LINK_PROTOCOL, contract.API_WORKER, "géss"), "wrong token"),
    ],
)
async def test_a_wrong_handshake_is_told_why_and_closed(
    peers: Peers, hello: Hello, text: str
) -> None:
    async with serve_link() as (path, server):
        peer = await peers.connect(path, hello)
        with pytest.raises(LinkRefusedError, match=text):
            check_welcome(await peer.body())
        assert await peer.closed()
        assert server.statistics()["refused_peers"] == 1


async def test_plugin_processes_are_refused_whatever_they_know() -> None:
    seen: list[int] = []

    def is_plugin(pid: int) -> bool:
        seen.append(pid)
        return True

    told: list[tuple[contract.Actor, str]] = []
    refused = partial(_keep, told)
    async with serve_link(is_plugin_process=is_plugin, refused=refused) as (path, _):
        with pytest.raises(LinkRefusedError, match="plugins"):
            await ask(path, contract.GetHealth(), contract.API_WORKER, API_TOKEN)
    assert seen == [os.getpid()]
    ((actor, reason),) = told
    assert actor == contract.Actor(contract.API_WORKER, os.getuid(), os.getpid())
    assert "plugins" in reason


def _keep(told: list[tuple[contract.Actor, str]], actor: contract.Actor, reason: str) -> None:
    told.append((actor, reason))


async def test_the_service_learns_who_asks_from_the_operating_system() -> None:
    seen: list[contract.Actor] = []

    class Curious(FakeService):
        async def handle(
            self, request: contract.Request, actor: contract.Actor
        ) -> contract.Response:
            seen.append(actor)
            return await super().handle(request, actor)

    async with serve_link(Curious()) as (path, _):
        await ask(path, contract.GetHealth(), contract.OPERATOR)
    assert seen == [contract.Actor(contract.OPERATOR, os.getuid(), os.getpid())]


async def test_roles_bound_what_may_be_asked() -> None:
    async with serve_link() as (path, _):
        disable = contract.PluginAction("x", "disable")
        refusal = await ask(path, disable, contract.API_WORKER, API_TOKEN)
        assert isinstance(refusal, contract.Error)
        assert refusal.kind is contract.ErrorKind.FORBIDDEN
        answer = await ask(path, disable, contract.OPERATOR)
        assert isinstance(answer, contract.Error)
        assert answer.kind is contract.ErrorKind.NOT_FOUND  # it reached the service


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x03abc",
        (4097).to_bytes(4, "big"),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_peers_that_speak_something_else_are_closed(peers: Peers, data: bytes) -> None:
    async with serve_link() as (path, _):
        peer = await peers.connect(path)
        await peer.stream.send_all(data)
        assert await peer.closed()
        assert await ask(path, contract.GetHealth(), contract.OPERATOR)


async def test_a_bad_batch_closes_only_its_own_connection(peers: Peers) -> None:
    async with serve_link() as (path, _):
        bad, good = await peers.operator(path), await peers.operator(path)
        await bad.stream.send_all(b"\x00\x00\x00\x02\x91\x01")
        assert await bad.closed()
        await good.stream.send_all(pack_batches([encode_item(1, SEND)]))
        assert (await good.answers())[0][0] == 1


async def test_a_silent_peer_is_closed_after_the_handshake_timeout(peers: Peers) -> None:
    async with serve_link(limits=LinkLimits(handshake_timeout_s=0.05)) as (path, _):
        peer = await peers.connect(path)
        assert await peer.closed()


async def test_over_the_in_flight_bound_the_connection_waits_and_loses_nothing(
    peers: Peers,
) -> None:
    service = FakeService()
    service.hold_sends = True
    async with serve_link(service, limits=LinkLimits(max_in_flight=10)) as (path, server):
        peer = await peers.operator(path)
        await peer.stream.send_all(pack_batches(encode_item(n, SEND) for n in range(35)))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(service.held) == 10
        assert server.statistics()["in_flight"] == 10
        got: list[int] = []
        while len(got) < 35:
            await _until(lambda: bool(service.held))
            service.release()
            got += [number for number, _ in await peer.answers()]
        assert got == list(range(35))


class BigAnswers(FakeService):
    """Answers each request for history with `size` bytes."""

    size = 1024 * 1024

    async def handle(self, request: contract.Request, actor: contract.Actor) -> contract.Response:
        return contract.PluginLogs(["x" * self.size], 0)


async def test_a_peer_that_takes_no_answers_is_closed(peers: Peers) -> None:
    limits = LinkLimits(max_outbox_bytes=4 * 1024 * 1024)
    async with serve_link(BigAnswers(), limits=limits) as (path, server):
        peer = await peers.operator(path)
        ask_logs = [encode_item(n, contract.GetPluginLogs("p")) for n in range(20)]
        await peer.stream.send_all(pack_batches(ask_logs))
        await _until(lambda: server.statistics()["connections"] == 0)


async def test_a_peer_that_stops_reading_is_closed_after_the_write_timeout(peers: Peers) -> None:
    limits = LinkLimits(write_timeout_s=0.1)
    async with serve_link(BigAnswers(), limits=limits) as (path, server):
        peer = await peers.operator(path)
        await peer.stream.send_all(pack_batches([encode_item(1, contract.GetPluginLogs("p"))]))
        await _until(lambda: server.statistics()["connections"] == 0)


async def test_an_answer_over_a_frame_is_an_error_to_its_asker_alone() -> None:
    service = BigAnswers()
    service.size = 17 * 1024 * 1024
    async with serve_link(service) as (path, _):
        answer = await ask(path, contract.GetPluginLogs("p"), contract.OPERATOR)
        assert isinstance(answer, contract.Error)
        assert "ask for less" in answer.text


class Broken(FakeService):
    async def handle(self, request: contract.Request, actor: contract.Actor) -> contract.Response:
        raise ZeroDivisionError

    def send_nowait(
        self, request: contract.SendMessage, done: Callable[[contract.Sent | contract.Error], None]
    ) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("request_", [SEND, contract.GetHealth()])
async def test_a_failing_request_is_an_internal_error_and_the_link_goes_on(
    request_: contract.Request,
) -> None:
    async with serve_link(Broken()) as (path, _):
        for _ in range(2):
            answer = await ask(path, request_, contract.OPERATOR)
            assert isinstance(answer, contract.Error)
            assert answer.kind is contract.ErrorKind.INTERNAL


class Unencodable(FakeService):
    async def handle(self, request: contract.Request, actor: contract.Actor) -> contract.Response:
        return contract.Statistics({"part": object()})


async def test_an_answer_that_cannot_be_encoded_is_an_internal_error() -> None:
    async with serve_link(Unencodable()) as (path, _):
        for _ in range(2):
            answer = await ask(path, contract.GetStatistics(), contract.OPERATOR)
            assert isinstance(answer, contract.Error)
            assert answer.kind is contract.ErrorKind.INTERNAL


async def test_a_failing_check_of_a_peer_refuses_it_and_the_link_goes_on(peers: Peers) -> None:
    calls: list[int] = []

    def fails_once(pid: int) -> bool:
        calls.append(pid)
        if len(calls) == 1:
            raise ZeroDivisionError
        return False

    async with serve_link(is_plugin_process=fails_once) as (path, _):
        peer = await peers.connect(path, Hello(contract.LINK_PROTOCOL, contract.OPERATOR))
        assert await peer.closed()
        assert await ask(path, contract.GetHealth(), contract.OPERATOR)


async def test_an_answer_for_a_peer_that_has_gone_is_dropped(peers: Peers) -> None:
    service = FakeService()
    service.hold_sends = True
    async with serve_link(service) as (path, server):
        peer = await peers.operator(path)
        await peer.stream.send_all(pack_batches([encode_item(1, SEND)]))
        await _until(lambda: len(service.held) == 1)
        await peer.stream.aclose()
        await _until(lambda: server.statistics()["connections"] == 0)
        service.release()
        assert await ask(path, contract.GetHealth(), contract.OPERATOR)


async def test_the_operator_finds_the_server_by_its_data_directory(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match="no server is running for the data directory"):
        connect_operator(tmp_path)
    runtime_dir = open_runtime_dir(tmp_path)
    assert open_runtime_dir(tmp_path) == runtime_dir
    try:
        with pytest.raises(NoServerError, match="wkhost run"):
            connect_operator(tmp_path)
        server = LinkServer(runtime_dir / LINK_SOCKET, FakeService(), api_token=API_TOKEN)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)

            def blocking() -> contract.Response:
                with connect_operator(tmp_path) as client:
                    return client.ask(contract.GetHealth())

            assert await trio.to_thread.run_sync(blocking) == contract.Health(ok=True)
            nursery.cancel_scope.cancel()
    finally:
        runtime_dir.rmdir()


def test_the_runtime_directory_goes_with_the_server_unless_something_is_left_in_it(
    tmp_path: Path,
) -> None:
    with runtime_directory(tmp_path) as runtime_dir:
        assert runtime_dir.is_dir()
    assert not runtime_dir.exists()
    with runtime_directory(tmp_path):
        (runtime_dir / "left").touch()
    (runtime_dir / "left").unlink()
    runtime_dir.rmdir()
    with pytest.raises(NoServerError):
        connect_operator(tmp_path)


def test_another_users_server_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, **options: object) -> str:
        raise PermissionError  # what the system says to any user but root

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(LinkRefusedError, match="run this command as its owner"):
        connect_operator(tmp_path)


async def test_the_blocking_client_gives_up_in_time() -> None:
    service = FakeService()
    service.hold_sends = True

    def blocking(path: Path) -> None:
        with SyncLinkClient(path, timeout_s=0.1) as client:
            client.ask(SEND)

    async with serve_link(service) as (path, _):
        with pytest.raises(LinkLostError, match=r"within 0.1 s"):
            await trio.to_thread.run_sync(blocking, path)


async def _until(true: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)
