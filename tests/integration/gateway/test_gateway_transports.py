"""Each transport carries each form of the protocol; framing, certificates and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from tests.integration.gateway.certificate import write_certificate
from tests.integration.gateway.kit import (
    ANY_PORT,
    WebSocketStream,
    client_context,
    login,
    login_over,
    open_stream,
    serve,
    until,
)
from tests.kit.wkclient import TestClient
from wkhost.errors import ConfigError
from wkhost.gateway.listeners import load_certificate
from wkhost.gateway.settings import GatewaySettings
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Send, Sub

FORMS = [Form.BINARY, Form.JSONRPC]


def message(seq: int, to: str = "bob", payload: bytes = b'{"type":1}') -> Send:
    return Send(
        client_seq=seq,
        client_msg_no=f"m{seq}",
        channel_id=to,
        channel_type=1,
        payload=payload,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transport", ["tcp", "ws", "wss"])
async def test_every_transport_carries_every_form(
    all_transports: GatewaySettings, transport: str, form: Form
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            alice = await login(served, "alice", transport, form)
            bob = await login(served, "bob", transport, form)
            for size in (1, 90, 500, 70_000):
                payload = b'{"content":"%s"}' % (b"x" * size)
                ack = await alice.send("bob", 1, payload)
                assert ack.reason_code == 1
                recv = await bob.recv()
                assert recv.payload == payload
                assert recv.message_id == ack.message_id
            await alice.ping()
            suback = await alice.subscribe(Sub("s1", "g", 2, 0))
            assert (suback.channel_id, suback.reason_code) == ("g", 1)
            await until(lambda: len(served.kernel.recvacks) == 4)
            request = served.kernel.requests[0]
            assert request.transport == transport
            assert request.jsonrpc is (form is Form.JSONRPC)
            assert request.peer_host == "127.0.0.1"
            assert request.peer_port > 0
            await alice.write(alice.conn.disconnect())
            await alice.wait_closed()
            await until(lambda: served.kernel.gone == [1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_split_and_joined_frames_arrive_in_order(
    all_transports: GatewaySettings, transport: str, form: Form
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            alice = await login(served, "alice", transport, form)
            data = b"".join(alice.conn.send(message(seq)) for seq in range(1, 6))
            await alice.write(data)
            for seq in range(1, 6):
                assert (await alice.sendack(seq)).message_seq == seq
            data = b"".join(alice.conn.send(message(seq)) for seq in range(6, 9))
            for i in range(0, len(data), 7):
                await alice.write(data[i : i + 7])
            for seq in range(6, 9):
                assert (await alice.sendack(seq)).message_seq == seq


@pytest.mark.parametrize("form", FORMS)
async def test_websocket_sends_one_frame_per_message_of_the_right_kind(
    all_transports: GatewaySettings, form: Form
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            stream = await open_stream(served, "ws", text=form is Form.JSONRPC, path="/any/p?q=1")
            assert isinstance(stream, WebSocketStream)
            alice = await login_over(stream, "alice", form)
            await alice.write(b"".join(alice.conn.send(message(seq)) for seq in range(1, 6)))
            for seq in range(1, 6):
                await alice.sendack(seq)
            kind = Opcode.TEXT if form is Form.JSONRPC else Opcode.BINARY
            assert stream.opcodes == [kind] * 6  # CONNACK and five SENDACKs


async def test_websocket_takes_fragmented_messages_and_either_opcode(
    all_transports: GatewaySettings,
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            stream = await open_stream(served, "ws")
            assert isinstance(stream, WebSocketStream)
            alice = await login_over(stream, "alice")
            data = alice.conn.send(message(1)) + alice.conn.send(message(2))
            stream.protocol.send_binary(data[:10], fin=False)
            stream.protocol.send_continuation(data[10:50], fin=False)
            stream.protocol.send_ping(b"between")  # control frames may come between fragments
            stream.protocol.send_continuation(data[50:], fin=True)
            stream.protocol.send_text(alice.conn.send(message(3)))
            await stream.flush()
            for seq in (1, 2, 3):
                assert (await alice.sendack(seq)).message_seq == seq
            assert stream.pongs == [b"between"]


async def test_websocket_close_is_answered_and_told_to_the_kernel(
    all_transports: GatewaySettings,
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            stream = await open_stream(served, "ws")
            assert isinstance(stream, WebSocketStream)
            await login_over(stream, "alice")
            stream.protocol.send_close(1000)
            await stream.flush()
            assert await stream.receive_some() == b""
            assert stream.protocol.close_rcvd is not None
            await stream.aclose()
            await until(lambda: served.kernel.gone == [1])


async def test_websocket_message_over_the_limit_is_refused_by_its_header() -> None:
    settings = GatewaySettings(ws=ANY_PORT, max_frame_bytes=1000)
    with trio.fail_after(10):
        async with serve(settings) as served:
            stream = await open_stream(served, "ws")
            assert isinstance(stream, WebSocketStream)
            await login_over(stream, "alice")
            await stream.under.send_all(b"\x82\xff" + (100_000).to_bytes(8, "big") + bytes(4))
            assert await stream.receive_some() == b""
            assert stream.protocol.close_rcvd is not None
            assert stream.protocol.close_rcvd.code == 1009


async def test_plain_http_on_the_websocket_port_gets_an_answer(
    all_transports: GatewaySettings,
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            stream = await trio.open_tcp_stream(*served.address("ws"))
            served.streams.append(stream)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            async for data in stream:
                answer += data
            assert answer.startswith(b"HTTP/1.1 426 ")


async def test_bad_websocket_handshake_is_refused(all_transports: GatewaySettings) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            with pytest.raises(InvalidStatus) as caught:
                await open_stream(served, "ws", headers={"Sec-WebSocket-Version": "12"})
            assert caught.value.response.status_code == 400


@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ({"X-Forwarded-For": "203.0.113.9, 10.0.0.1", "X-Real-IP": "1.2.3.4"}, ("203.0.113.9", 0)),
        ({"X-Real-IP": "203.0.113.8", "X-Real-Port": "4711"}, ("203.0.113.8", 4711)),
    ],
)
async def test_websocket_peer_address_comes_from_the_proxy(
    all_transports: GatewaySettings, headers: dict[str, str], peer: tuple[str, int]
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            await login_over(await open_stream(served, "ws", headers=headers), "alice")
            request = served.kernel.requests[0]
            assert (request.peer_host, request.peer_port) == peer


async def test_proxy_header_gives_the_peer_address() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            stream = await open_stream(served)
            await stream.send_all(b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 5100\r\n")
            await login_over(stream, "alice")
            request = served.kernel.requests[0]
            assert (request.peer_host, request.peer_port) == ("203.0.113.7", 4711)


async def peer_organization(port_address: tuple[str, int]) -> bytes:
    stream = trio.SSLStream(
        await trio.open_tcp_stream(*port_address), client_context(), https_compatible=True
    )
    await stream.do_handshake()
    certificate: bytes = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    return certificate


async def test_new_certificate_serves_new_connections_and_spares_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "server.pem"
    write_certificate(path, "first-owner")
    settings = GatewaySettings(wss=ANY_PORT, wss_certificate=str(path))
    with trio.fail_after(10):
        async with serve(settings) as served:
            alice = await login(served, "alice", "wss")
            assert b"first-owner" in await peer_organization(served.address("wss"))
            write_certificate(path, "second-owner")
            served.gateway.reload_certificate()
            assert b"second-owner" in await peer_organization(served.address("wss"))
            path.write_text("broken")
            with pytest.raises(ConfigError, match=r"server\.pem"):
                served.gateway.reload_certificate()
            assert b"second-owner" in await peer_organization(served.address("wss"))
            await alice.ping()


def test_missing_certificate_is_one_clear_sentence(tmp_path: Path) -> None:
    settings = GatewaySettings(wss=ANY_PORT, wss_certificate=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"wss certificate .*none\.pem cannot be used"):
        load_certificate(settings)


async def test_packets_behind_connect_wait_for_the_verdict() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            served.kernel.verdict = lambda _: None
            stream = await open_stream(served)
            conn = ClientConnection("alice", form=Form.JSONRPC)
            sends = b"".join(conn.send(message(seq)) for seq in (1, 2))
            await stream.send_all(conn.connect(0) + sends + conn.ping())
            await until(lambda: len(served.kernel.requests) == 1)
            await stream.send_all(conn.send(message(3)))
            assert served.kernel.sends == []
            served.gateway.accept(1)
            served.gateway.flush()
            client = TestClient(stream, conn)
            for seq in (1, 2, 3):
                assert (await client.sendack(seq)).message_seq == seq
            assert [send.client_msg_no for _, send in served.kernel.sends] == ["m1", "m2", "m3"]


async def test_address_in_use_is_named() -> None:
    async with serve() as served:
        address = served.address("tcp")
        with pytest.raises(BaseExceptionGroup) as caught:
            async with serve(GatewaySettings(tcp=address)):
                pass
        assert caught.group_contains(ConfigError, match=f"cannot listen on 127.0.0.1:{address[1]}")
