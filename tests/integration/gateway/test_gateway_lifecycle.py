"""From accept to close: verdicts, deadlines, kicks, draining, and nothing left behind."""

from __future__ import annotations

import gc
import os
import socket
import time

import pytest
import trio

from tests.integration.gateway.kit import (
    ANY_PORT,
    login,
    login_over,
    make_recv,
    open_stream,
    serve,
    until,
)
from tests.kit.wkclient import TestClient
from wkhost.errors import ConfigError
from wkhost.gateway.settings import GatewaySettings
from wkhost.gateway.sweep import Gateway
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Sendack

FORMS = [Form.BINARY, Form.JSONRPC]


async def read_to_end(stream: trio.abc.Stream) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data


@pytest.mark.parametrize("transport", ["tcp", "ws", "wss"])
async def test_silence_before_connect_ends_at_the_connect_timeout(
    all_transports: GatewaySettings, transport: str
) -> None:
    settings = GatewaySettings(
        tcp=ANY_PORT,
        ws=ANY_PORT,
        wss=ANY_PORT,
        wss_certificate=all_transports.wss_certificate,
        connect_timeout_s=0.2,
    )
    with trio.fail_after(5):
        async with serve(settings) as served:
            stream = await trio.open_tcp_stream(*served.address(transport))
            served.streams.append(stream)
            started = time.monotonic()
            if transport == "tcp":
                await stream.send_all(b"\x10")  # a header that never ends does not extend it
            assert await read_to_end(stream) == b""
            assert 0.19 < time.monotonic() - started < 1.5
            assert served.gateway.statistics().connect_timeouts == 1
            assert served.kernel.gone == []  # the kernel never heard of it


async def test_idle_connection_is_closed_and_ping_keeps_it() -> None:
    settings = GatewaySettings(tcp=ANY_PORT, idle_timeout_s=0.5)
    with trio.fail_after(10):
        async with serve(settings) as served:
            idle = await login(served, "idle")
            alive = await login(served, "alive")
            started = time.monotonic()
            while served.kernel.gone != [1]:
                await alive.ping()
                await trio.sleep(0.05)
            assert time.monotonic() - started > 0.45
            assert await idle.wait_closed() == []
            await alive.ping()
            assert served.gateway.statistics().idle_timeouts == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transport", ["tcp", "ws", "wss"])
async def test_refused_login_is_told_why_and_closed(
    all_transports: GatewaySettings, transport: str, form: Form
) -> None:
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            gateway = served.gateway
            served.kernel.verdict = lambda request: gateway.refuse(request.conn_id, 19, "banned")
            client = await login(served, "alice", transport, form)
            assert client.connack.reason_code == 19
            await client.wait_closed()
            await client.close()
            await until(lambda: served.kernel.gone == [1])


async def test_refusal_reaches_a_client_that_goes_on_sending() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            gateway = served.gateway
            served.kernel.verdict = lambda _: None
            stream = await open_stream(served)
            conn = ClientConnection("alice")
            await stream.send_all(conn.connect(0))
            await until(lambda: len(served.kernel.requests) == 1)
            await stream.send_all(b"\x70" * 10_000)
            gateway.refuse(1, 2)
            gateway.flush()
            await stream.send_all(b"\x70" * 10_000)
            conn.receive(await read_to_end(stream))
            assert conn.connack is not None
            assert conn.connack.reason_code == 2


async def test_login_that_cannot_be_decided_is_closed_without_an_answer() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            gateway = served.gateway
            served.kernel.verdict = lambda request: gateway.close(request.conn_id)
            stream = await open_stream(served)
            await stream.send_all(ClientConnection("alice").connect(0))
            assert await read_to_end(stream) == b""
            await until(lambda: served.kernel.gone == [1])


@pytest.mark.parametrize("form", FORMS)
async def test_kick_sends_disconnect_and_closes_later(form: Form) -> None:
    with trio.fail_after(10):
        async with serve() as served:
            client = await login(served, "alice", form=form)
            started = time.monotonic()
            served.gateway.disconnect(1, 12, "login in other device", close_after_s=0.3)
            served.gateway.flush()
            packet = await client.disconnected()
            assert (packet.reason_code, packet.reason) == (12, "login in other device")
            assert time.monotonic() - started < 0.25
            await client.ping()  # still served meanwhile
            await client.wait_closed()
            assert time.monotonic() - started > 0.29
            await until(lambda: served.kernel.gone == [1])


async def test_close_at_once_still_sends_what_was_queued() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            client = await login(served, "alice")
            served.gateway.sendacks([(1, Sendack(7, 1, 1, 1))])
            served.gateway.close(1)
            assert (await client.sendack(7)).message_id == 1
            assert await client.wait_closed() == []
            await until(lambda: served.kernel.gone == [1])


async def test_unknown_connections_are_ignored() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            client = await login(served, "alice")
            gateway = served.gateway
            gateway.accept(99)
            gateway.accept(1)  # a second verdict for the same login
            gateway.refuse(1, 2)
            gateway.refuse(99, 2)
            gateway.sendacks([(99, Sendack(1, 1, 1, 1))])
            gateway.recv(make_recv(b'{"n":1}'), [99, 1, 98])
            gateway.disconnect(99, 12, "", 0.0)
            gateway.close(99, 1.0)
            gateway.flush()
            assert (await client.recv()).payload == b'{"n":1}'
            await client.ping()


async def test_connection_numbers_ascend_from_one() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            for n in range(3):
                client = await login(served, f"u{n}")
                await client.close()
            assert [request.conn_id for request in served.kernel.requests] == [1, 2, 3]


async def test_message_that_cannot_be_encoded_harms_nobody() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            client = await login(served, "alice")
            served.gateway.recv(make_recv(sender="x" * 40_000), [1])
            served.gateway.flush()
            await client.ping()
            assert served.gateway.statistics().unencodable == 1


async def test_login_storm_reaches_the_kernel_in_small_batches() -> None:
    with trio.fail_after(20):
        async with serve() as served:
            streams = [await open_stream(served) for _ in range(60)]
            for n, stream in enumerate(streams):
                await stream.send_all(ClientConnection(f"u{n}").connect(0))
            await until(lambda: len(served.kernel.requests) == 60)
            assert served.kernel.largest_login_batch <= 16


async def test_drain_writes_what_is_queued_then_closes_all() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            clients = [await login(served, f"u{n}") for n in range(3)]
            gateway = served.gateway
            gateway.quiesce()
            with pytest.raises(OSError, match="attempts to connect"):
                await trio.open_tcp_stream(*served.address("tcp"))
            await clients[0].write(clients[0].conn.ping())  # not read any more
            gateway.sendacks([(1, Sendack(1, 5, 5, 1)), (2, Sendack(2, 6, 6, 1))])
            await gateway.drain()
            assert (await clients[0].sendack(1)).message_id == 5
            assert (await clients[1].sendack(2)).message_id == 6
            for client in clients[1:]:
                assert await client.wait_closed() == []
            await until(lambda: sorted(served.kernel.gone) == [1, 2, 3])


async def test_drain_gives_up_on_a_client_that_does_not_read() -> None:
    with trio.fail_after(10):
        async with serve(GatewaySettings(tcp=ANY_PORT, outbox_bytes=64 << 20)) as served:
            await login(served, "stuck")
            served.gateway.recv(make_recv(b"x" * (16 << 20)), [1])
            served.gateway.flush()
            with trio.move_on_after(0.2) as scope:
                await served.gateway.drain()
            assert scope.cancelled_caught
            assert served.gateway.statistics().connections == 0


async def test_drain_of_an_empty_gateway_ends_at_once() -> None:
    with trio.fail_after(2):
        async with serve() as served:
            await served.gateway.drain()
        await served.gateway.drain()  # also when it has stopped


async def test_small_frames_leave_without_delay() -> None:
    with trio.fail_after(5):
        async with serve() as served:
            await login(served, "alice")
            sock = served.gateway._table.by_id[1].sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_thousand_connections_leave_no_descriptor(all_transports: GatewaySettings) -> None:
    with trio.fail_after(60):
        async with serve(all_transports) as served:
            await login(served, "first")
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
            opened = 1
            for round_ in range(10):
                streams: list[trio.abc.Stream] = []
                for n in range(100):
                    transport = "ws" if n % 10 == 0 else "tcp"
                    stream = await open_stream(served, transport)
                    if n % 20 == 0:
                        await login_over(stream, f"u{round_}-{n}")
                    elif n % 3 == 0:
                        await stream.send_all(b"\xff\x00")
                    streams.append(stream)
                for stream in streams:
                    await trio.aclose_forcefully(stream)
                opened += 100
            gateway = served.gateway
            await until(lambda: gateway.statistics().closed == opened - 1)
            assert len(os.listdir("/proc/self/fd")) == before
            assert gateway.statistics().connections == 1
            assert sorted(served.kernel.gone) == sorted(
                request.conn_id for request in served.kernel.requests[1:]
            )


async def test_stopped_gateway_leaves_no_descriptor(all_transports: GatewaySettings) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with trio.fail_after(10):
        async with serve(all_transports) as served:
            await login(served, "alice", "wss")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_fault_of_ours_closes_one_client_only(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(10):
        async with serve() as served:
            victim = await login(served, "victim")
            other = await login(served, "other")

            def broken(_: bytes) -> list[object]:
                raise ZeroDivisionError

            client = served.gateway._table.by_id[1]
            client.conn = type("Broken", (), {"receive": staticmethod(broken)})()
            await victim.write(victim.conn.ping())
            await victim.wait_closed()
            await other.ping()
            assert served.gateway.statistics().client_failures == 1


async def test_connections_are_listed_with_their_counters() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            alice = await login(served, "alice")
            bob = await login(served, "bob", form=Form.JSONRPC)
            await open_stream(served)
            await alice.send("bob", 1, b"{}")
            await bob.recv()
            await until(lambda: len(served.kernel.recvacks) == 1)
            await until(lambda: served.gateway.statistics().connections == 3)
            first, second, third = served.gateway.connections()
            assert (first.conn_id, first.accepted, first.jsonrpc, first.version) == (
                1,
                True,
                False,
                5,
            )
            assert (first.in_packets, first.in_msgs, first.out_packets) == (2, 1, 2)
            assert (second.jsonrpc, second.in_packets, second.out_msgs) == (True, 2, 1)
            assert (third.accepted, third.in_bytes, third.pending_bytes) == (False, 0, 0)
            assert served.gateway.connections(1, 1)[0].conn_id == 2
            statistics = served.gateway.statistics()
            assert statistics.in_bytes == first.in_bytes + second.in_bytes
            assert (statistics.in_msgs, statistics.out_msgs, statistics.out_packets) == (1, 1, 4)


def test_wss_without_certificate_is_refused() -> None:
    with pytest.raises(ConfigError, match="wss needs a certificate"):
        Gateway(GatewaySettings(wss=ANY_PORT), lambda: 0)


async def test_client_that_only_half_reads_its_disconnect_is_gone_in_time() -> None:
    """A refused client that never closes its end is closed after the linger time."""
    with trio.fail_after(10):
        async with serve() as served:
            gateway = served.gateway
            served.kernel.verdict = lambda request: gateway.refuse(request.conn_id, 2)
            client: TestClient = await login(served, "alice")
            started = time.monotonic()
            await until(lambda: served.kernel.gone == [1])
            assert 1.5 < time.monotonic() - started < 4
            assert client.connack.reason_code == 2
