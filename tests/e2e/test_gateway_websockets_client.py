"""The gateway against an independent WebSocket client that threads, compresses and pings."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection as WebSocket
from websockets.sync.client import connect

from tests.integration.gateway.certificate import write_certificate
from tests.integration.gateway.kit import ANY_PORT, client_context, serve, until
from wkhost.gateway.settings import GatewaySettings
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.packets import Connack, Pong, Send, Sendack

pytestmark = pytest.mark.e2e


@pytest.fixture
def both(tmp_path: Path) -> GatewaySettings:
    path = tmp_path / "server.pem"
    write_certificate(path, "e2e")
    return GatewaySettings(ws=ANY_PORT, wss=ANY_PORT, wss_certificate=str(path))


def open_websocket(transport: str, address: tuple[str, int]) -> WebSocket:
    uri = f"{transport}://{address[0]}:{address[1]}/some/path?token=1"
    return connect(uri, ssl=client_context() if transport == "wss" else None, proxy=None)


def talk_binary(transport: str, address: tuple[str, int]) -> int | None:
    """Log in, send in pieces and in batches, ping on both levels, close; the close code seen."""
    with open_websocket(transport, address) as websocket:
        assert websocket.protocol.extensions == []  # compression was offered and declined
        conn = ClientConnection(f"binary-{transport}")
        websocket.send(conn.connect(0))
        (connack,) = conn.receive(websocket.recv(decode=False))
        assert isinstance(connack, Connack)
        assert connack.reason_code == 1
        sends = [
            conn.send(Send(seq, uuid.uuid4().hex, "nobody", 1, b"x" * 1000 * seq))
            for seq in range(1, 6)
        ]
        stream = b"".join(sends)
        websocket.send(stream[i : i + 999] for i in range(0, len(stream), 999))
        for seq in range(1, 6):
            (ack,) = conn.receive(websocket.recv(decode=False))
            assert isinstance(ack, Sendack)
            assert ack.client_seq == seq
        websocket.send(conn.ping())
        (pong,) = conn.receive(websocket.recv(decode=False))
        assert isinstance(pong, Pong)
        assert websocket.ping().wait(5)
    return websocket.close_code


def talk_jsonrpc(transport: str, address: tuple[str, int]) -> list[str]:
    """Log in and ping by hand-written JSON; the ids of the answers."""
    ids = []
    with open_websocket(transport, address) as websocket:
        params = {"uid": f"json-{transport}", "token": "t", "deviceId": "d", "deviceFlag": 1}
        for method, value in (("connect", params), ("ping", {}), ("ping", None)):
            request = {"method": method, "id": uuid.uuid4().hex, "params": value}
            websocket.send(json.dumps(request))
            answer = json.loads(websocket.recv(decode=True))
            assert answer["id"] == request["id"]
            assert "result" in answer
            ids.append(answer["id"])
    return ids


@pytest.mark.parametrize("transport", ["ws", "wss"])
async def test_library_client_talks_binary_and_jsonrpc(
    both: GatewaySettings, transport: str
) -> None:
    with trio.fail_after(20):
        async with serve(both) as served:
            address = served.address(transport)
            assert await trio.to_thread.run_sync(talk_binary, transport, address) == 1000
            assert len(await trio.to_thread.run_sync(talk_jsonrpc, transport, address)) == 3
            await until(lambda: served.gateway.statistics().connections == 0)
            assert sorted(served.kernel.gone) == [1, 2]


async def test_drain_looks_like_a_lost_connection_so_that_clients_come_back(
    both: GatewaySettings,
) -> None:
    def wait_for_the_end(address: tuple[str, int]) -> ConnectionClosed:
        with open_websocket("ws", address) as websocket:
            conn = ClientConnection("alice")
            websocket.send(conn.connect(0))
            websocket.recv()
            with pytest.raises(ConnectionClosed) as caught:
                websocket.recv()
            return caught.value

    with trio.fail_after(20):
        async with serve(both) as served, trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[ConnectionClosed](1)

            async def watch() -> None:
                error = await trio.to_thread.run_sync(wait_for_the_end, served.address("ws"))
                await send.send(error)

            nursery.start_soon(watch)
            await until(lambda: len(served.kernel.requests) == 1)
            await served.gateway.drain()
            error = await receive.receive()
            assert error.rcvd is None  # 1006, not one of the codes that clients take as final
