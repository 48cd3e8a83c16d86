"""Slow consumers, rates, numbers of connections, descriptors, fairness, hostile bytes."""

from __future__ import annotations

import contextlib
import os
import resource
import time

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.gateway.kit import (
    ANY_PORT,
    Served,
    login,
    make_recv,
    open_stream,
    serve,
    until,
)
from tests.kit.wkclient import ConnectionLostError, TestClient
from wkhost.gateway.settings import GatewaySettings
from wkhost.gateway.sweep import MAX_READ_BYTES
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Event, Send
from wkhost.types import Flags

PAYLOAD = b'{"content":"%s"}' % (b"x" * 2000)


async def fill(served: Served, conn_id: int) -> int:
    """Deliver stored messages until one more would not fit; returns how many were taken."""
    gateway = served.gateway
    for seq in range(1, 100_000):
        gateway.recv(make_recv(PAYLOAD, seq=seq), [conn_id])
        gateway.flush()
        info = gateway.connections()[0]
        if info.pending_bytes + 3000 > GatewaySettings().outbox_bytes:
            return seq
        if seq % 100 == 0:
            await trio.lowlevel.checkpoint()
    raise AssertionError("the socket never filled")


@pytest.mark.parametrize("transport", ["tcp", "ws", "wss"])
async def test_slow_consumer_is_closed_and_no_stored_message_skipped(
    all_transports: GatewaySettings, transport: str
) -> None:
    with trio.fail_after(30):
        async with serve(all_transports) as served:
            client = await login(served, "slow", transport)
            taken = await fill(served, 1)
            for seq in range(taken + 1, taken + 100):
                served.gateway.recv(make_recv(PAYLOAD, seq=seq), [1])
            statistics = served.gateway.statistics()
            assert statistics.slow_consumers == 1
            assert statistics.connections == 0
            await until(lambda: served.kernel.gone == [1])
            seen: list[int] = []
            with contextlib.suppress(ConnectionLostError, trio.BrokenResourceError):
                while True:
                    seen.append((await client.recv(ack=False)).message_seq)
            assert seen == list(range(1, len(seen) + 1))
            assert len(seen) > 0


async def test_full_outbox_drops_what_may_be_lost_and_keeps_the_connection() -> None:
    with trio.fail_after(30):
        async with serve() as served:
            client = await login(served, "slow")
            taken = await fill(served, 1)
            lossy = make_recv(PAYLOAD, seq=9999, flags=Flags.NO_PERSIST)
            for _ in range(50):
                served.gateway.recv(lossy, [1])
                served.gateway.event(Event("e", "t", 1, PAYLOAD), [1])
            assert served.gateway.statistics().lossy_dropped == 100
            assert served.gateway.connections()[0].dropped == 100
            for seq in range(1, taken + 1):
                assert (await client.recv(ack=False)).message_seq == seq
            await client.ping()
            served.gateway.recv(lossy, [1])
            served.gateway.flush()
            assert (await client.recv()).message_seq == 9999


async def test_lossy_frames_never_use_up_the_room_of_stored_ones() -> None:
    with trio.fail_after(30):
        async with serve() as served:
            client = await login(served, "slow")
            gateway = served.gateway
            lossy = make_recv(PAYLOAD, seq=7777, flags=Flags.NO_PERSIST)
            while not gateway.statistics().lossy_dropped:
                gateway.recv(lossy, [1])
                gateway.flush()
            for seq in range(1, 9):  # 8 * 2.8 KiB fit in the other half
                gateway.recv(make_recv(PAYLOAD, seq=seq), [1])
            assert gateway.statistics().slow_consumers == 0
            seen: list[int] = []
            while len(seen) < 8:
                seq = (await client.recv(ack=False)).message_seq
                if seq != 7777:
                    seen.append(seq)
            assert seen == list(range(1, 9))


async def test_message_larger_than_the_outbox_passes_when_nothing_else_waits() -> None:
    with trio.fail_after(30):
        async with serve() as served:
            client = await login(served, "alice")
            payload = b"x" * 700_000
            served.gateway.recv(make_recv(payload), [1])
            served.gateway.flush()
            assert (await client.recv()).payload == payload


@pytest.mark.parametrize("kind", ["ping", "websocket ping", "send"])
async def test_client_that_asks_and_never_reads_is_closed(
    all_transports: GatewaySettings, kind: str
) -> None:
    with trio.fail_after(60):
        async with serve(all_transports) as served, trio.open_nursery() as nursery:
            client = await login(served, "alice", "ws" if kind.startswith("web") else "tcp")
            if kind == "ping":
                data = client.conn.ping() * 50_000
            elif kind == "send":
                data = client.conn.send(Send(1, "m", "nobody", 1, b"x")) * 500
            else:
                data = (b"\x89\xfdabcd" + b"x" * 125) * 1_000
            raw = TestClient(served.streams[-1], client.conn)
            nursery.start_soon(flood, raw, data)
            await until(lambda: served.gateway.statistics().connections == 0, within_s=50)
            assert served.gateway.statistics().slow_consumers == 1
            nursery.cancel_scope.cancel()


async def test_client_over_its_rate_waits_but_loses_nothing() -> None:
    limited = GatewaySettings(tcp=ANY_PORT, rate_frames_per_s=200)
    with trio.fail_after(30):
        async with serve(limited) as served:
            alice = await login(served, "alice")
            bob = await login(served, "bob")
            started = time.monotonic()
            data = b"".join(
                alice.conn.send(Send(seq, f"m{seq}", "nobody", 1, b"{}")) for seq in range(1, 501)
            )
            await alice.write(data)
            await until(lambda: served.gateway.statistics().paused_reads == 1)
            await bob.ping()  # others are not held up
            for seq in range(1, 501):
                assert (await alice.sendack(seq)).message_seq == seq
            assert time.monotonic() - started > 0.9
            assert served.gateway.statistics().throttled >= 1


async def test_byte_rate_slows_reading() -> None:
    limited = GatewaySettings(tcp=ANY_PORT, rate_bytes_per_s=100_000)
    with trio.fail_after(30):
        async with serve(limited) as served:
            alice = await login(served, "alice", form=Form.JSONRPC)
            started = time.monotonic()
            for seq in range(1, 4):
                await alice.post("nobody", 1, b"x" * 60_000)
                await alice.sendack(seq)
            assert time.monotonic() - started > 0.9


async def closed_at_once(stream: trio.abc.Stream) -> bool:
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


@pytest.mark.parametrize(
    "limited",
    [
        GatewaySettings(tcp=ANY_PORT, max_connections=2),
        GatewaySettings(tcp=ANY_PORT, max_connections_per_address=2),
    ],
)
async def test_connections_over_the_limit_are_turned_away(limited: GatewaySettings) -> None:
    with trio.fail_after(10):
        async with serve(limited) as served:
            first = await login(served, "a")
            second = await login(served, "b")
            assert await closed_at_once(await open_stream(served))
            assert served.gateway.statistics().turned_away == 1
            await first.ping()
            await second.close()
            await until(lambda: served.gateway.statistics().connections == 1)
            third = await login(served, "c")
            await third.ping()


async def test_running_out_of_descriptors_pauses_accept_without_spinning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(20):
        async with serve() as served:
            alice = await login(served, "alice")
            waiting = trio.socket.socket()
            with waiting:
                used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
                fillers = []
                try:
                    with contextlib.suppress(OSError):
                        while True:
                            fillers.append(os.dup(0))
                    await waiting.connect(served.address("tcp"))
                    await until(lambda: served.gateway.statistics().accept_failures >= 1)
                    sweeps = served.gateway.statistics().sweeps
                    await alice.ping()
                    await trio.sleep(0.2)
                    assert served.gateway.statistics().sweeps - sweeps < 10
                finally:
                    for fd in fillers:
                        os.close(fd)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await until(lambda: served.gateway.statistics().connections == 2)


async def flood(client: TestClient, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await client.write(data)


async def drop_all(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await stream.receive_some(MAX_READ_BYTES):
            pass


@pytest.mark.parametrize("kind", ["ping", "send", "tiny websocket frames"])
async def test_flooding_client_does_not_delay_the_ping_of_another(
    all_transports: GatewaySettings, kind: str
) -> None:
    with trio.fail_after(30):
        async with serve(all_transports) as served, trio.open_nursery() as nursery:
            transport = "ws" if kind.startswith("tiny") else "tcp"
            loud = await login(served, "loud", transport)
            stream = served.streams[-1]
            quiet = await login(served, "quiet")
            if kind == "ping":
                data = loud.conn.ping() * 20_000
            elif kind == "send":
                send = Send(1, "m", "nobody", 1, b"x" * 100)
                data = loud.conn.send(send) * 300
            else:
                data = b"\x82\x80abcd" * 5_000
            nursery.start_soon(flood, TestClient(stream, loud.conn), data)
            nursery.start_soon(drop_all, stream)
            await until(lambda: served.gateway.statistics().in_bytes > 300_000)
            worst = 0.0
            for _ in range(50):
                started = time.monotonic()
                await quiet.ping()
                worst = max(worst, time.monotonic() - started)
            # client, flood and server share one thread here, so this is mostly the flood's own time
            assert worst < 0.25
            assert served.gateway.statistics().slow_consumers == 0
            nursery.cancel_scope.cancel()


garbage = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.binary(max_size=60).map(lambda tail: b"\x10" + tail),
    st.text(max_size=60).map(lambda text: b'{"jsonrpc":"2.0",' + text.encode()),
    st.binary(max_size=60).map(lambda tail: b"\x16\x03\x01" + tail),
    st.binary(max_size=60).map(lambda tail: b"GET / HTTP/1.1\r\n" + tail + b"\r\n\r\n"),
)
after_login = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.binary(max_size=60).map(lambda tail: b"\x30\x7f" + tail),
)


def test_hostile_bytes_close_at_most_their_own_connection(
    all_transports: GatewaySettings,
) -> None:
    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # shrinking over sockets takes minutes
    )
    @given(
        st.lists(st.tuples(st.sampled_from(["tcp", "ws", "wss"]), garbage), min_size=1, max_size=3),
        after_login,
    )
    def attack(before: list[tuple[str, bytes]], after: bytes) -> None:
        trio.run(attack_once, before, after)

    async def attack_once(before: list[tuple[str, bytes]], after: bytes) -> None:
        with trio.fail_after(20):
            async with serve(all_transports) as served:
                bystander = await login(served, "bystander")
                for transport, data in before:
                    stream = await trio.open_tcp_stream(*served.address(transport))
                    served.streams.append(stream)
                    with contextlib.suppress(trio.BrokenResourceError):
                        await stream.send_all(data)
                        await stream.send_eof()
                logged_in = await login(served, "hostile", "ws")
                with contextlib.suppress(trio.BrokenResourceError):
                    await logged_in.write(after)
                    await served.streams[-1].send_all(after)
                await trio.aclose_forcefully(served.streams[-1])
                gateway = served.gateway
                await until(lambda: gateway.statistics().connections == 1)
                await bystander.ping()
                assert gateway.statistics().client_failures == 0

    attack()


async def test_connect_with_a_useless_key_is_refused() -> None:
    with trio.fail_after(10):
        async with serve() as served:
            stream = await open_stream(served)
            conn = ClientConnection("alice")
            good = conn.connect(0)
            await stream.send_all(good[:-44] + b"A" * 43 + b"=")
            data = await stream.receive_some()
            conn.receive(bytes(data))
            assert conn.connack is not None
            assert conn.connack.reason_code == 21
            assert served.kernel.requests == []
