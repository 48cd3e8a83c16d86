"""Every client form over every transport against a whole server, and the server's own manners."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import combinations
from pathlib import Path

import pytest
import trio
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID
from websockets.frames import Opcode

from tests.integration.gateway.certificate import write_certificate
from tests.integration.gateway.kit import client_context
from tests.kit.server import ServerProcess, running_server
from tests.kit.websocket_stream import WebSocketStream
from tests.kit.wkclient import ConnectionLostError, TestClient
from wkhost.protocol.connection import Form
from wkhost.types import Flags

pytestmark = pytest.mark.e2e

PERSON = 1
GROUP = 2
LIMIT_S = 60
STOP_S = 10
TCP = (
    *(("tcp", Form.BINARY, version) for version in (1, 2, 3, 4, 5)),
    ("tcp", Form.JSONRPC, 5),
)
KINDS = (
    *TCP,
    ("ws", Form.BINARY, 5),
    ("ws", Form.JSONRPC, 5),
    ("wss", Form.BINARY, 2),
    ("wss", Form.JSONRPC, 5),
)

Kind = tuple[str, Form, int]


def name_of(kind: Kind) -> str:
    transport, form, version = kind
    return f"{transport}-{form.name.lower()}-{version}"


async def log_in(
    server: ServerProcess, kind: Kind, uid: str, *, device_id: str = "d", device_flag: int = 1
) -> TestClient:
    transport, form, version = kind
    address = server.address(transport)
    stream: trio.abc.Stream
    if transport == "tcp":
        stream = await trio.open_tcp_stream(*address)
    else:
        tls = client_context() if transport == "wss" else None
        stream = await WebSocketStream.open(address, text=form is Form.JSONRPC, tls=tls)
    client = await TestClient.over(
        stream, uid, version=version, form=form, device_id=device_id, device_flag=device_flag
    )
    assert client.connack.reason_code == 1
    assert client.connack.server_version == (version if version >= 4 else 0)
    return client


@asynccontextmanager
async def server_with_wss(folder: Path) -> AsyncIterator[ServerProcess]:
    certificate = folder / "server.pem"
    write_certificate(certificate, "before")
    settings = {
        "wssAddr": "wss://127.0.0.1:0",
        "wssConfig": {"certFile": str(certificate), "keyFile": str(certificate)},
    }
    async with running_server(folder / "server", settings) as server:
        yield server
    assert [line for line in server.trouble() if "certificate_not_reloaded" not in line] == []


def text(content: str) -> bytes:
    return json.dumps({"type": 1, "content": content}, ensure_ascii=False).encode()


async def test_all_forms_versions_and_transports_share_their_chats(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with server_with_wss(tmp_path) as server:
            clients = {name_of(kind): await log_in(server, kind, name_of(kind)) for kind in KINDS}
            await _everybody_speaks_in_a_group(server, clients)
            for uid, peer in combinations(clients, 2):
                await _both_speak_in_person(clients, uid, peer)
            await _two_devices_see_both_sides(server, clients)
            for kind in KINDS:
                client = clients[name_of(kind)]
                await client.ping()
                if isinstance(client.stream, WebSocketStream):
                    wanted = Opcode.TEXT if kind[1] is Form.JSONRPC else Opcode.BINARY
                    assert client.stream.opcodes == {wanted}
                await client.close()


async def _everybody_speaks_in_a_group(
    server: ServerProcess, clients: dict[str, TestClient]
) -> None:
    """Each in turn speaks; all others read the very same message, in one order."""
    await server.post("/channel", channel_id="all", channel_type=GROUP, subscribers=[*clients])
    for seq, (uid, sender) in enumerate(clients.items(), 1):
        payload = text(f"{uid} says 你好 😀")
        ack = await sender.send(
            "all", GROUP, payload, client_msg_no=f"no-{uid}", flags=Flags.RED_DOT, expire=60
        )
        assert (ack.reason_code, ack.message_seq) == (1, seq)
        for own, reader in clients.items():
            if reader is not sender:
                got = await reader.recv()
                assert (got.message_id, got.message_seq) == (ack.message_id, seq)
                assert (got.from_uid, got.channel_id, got.channel_type) == (uid, "all", GROUP)
                assert (got.payload, got.client_msg_no) == (payload, f"no-{uid}")
                assert got.flags == Flags.RED_DOT
                assert got.expire == (60 if _knows_expire(uid) and _knows_expire(own) else 0)


def _knows_expire(uid: str) -> bool:
    return int(uid[-1]) >= 3


async def _both_speak_in_person(clients: dict[str, TestClient], uid: str, peer: str) -> None:
    """One sequence for both ways; the chat is named by the other one's uid."""
    for seq, (me, you) in enumerate(((uid, peer), (peer, uid)), 1):
        ack = await clients[me].send(you, PERSON, text(f"{me} to {you}"))
        assert (ack.reason_code, ack.message_seq) == (1, seq)
        got = await clients[you].recv()
        assert (got.message_id, got.message_seq) == (ack.message_id, seq)
        assert (got.channel_id, got.from_uid) == (me, me)
        assert got.payload == text(f"{me} to {you}")


async def _two_devices_see_both_sides(
    server: ServerProcess, clients: dict[str, TestClient]
) -> None:
    """The other device sees what its user sends (as chat with the peer) and what comes."""
    uid, peer = "ws-jsonrpc-5", "tcp-binary-1"
    phone = await log_in(server, ("tcp", Form.BINARY, 4), uid, device_id="phone", device_flag=0)
    ack = await clients[uid].send(peer, PERSON, text("from the web"))
    own = await phone.recv()
    assert (own.message_id, own.channel_id, own.from_uid) == (ack.message_id, peer, uid)
    assert (await clients[peer].recv()).message_id == ack.message_id
    ack = await clients[peer].send(uid, PERSON, text("to both"))
    for device in (phone, clients[uid]):
        got = await device.recv()
        assert (got.message_id, got.channel_id) == (ack.message_id, peer)
    await phone.close()


async def test_sighup_serves_the_new_certificate_and_keeps_a_broken_one_out(
    tmp_path: Path,
) -> None:
    def seen(address: tuple[str, int]) -> str:
        pem = ssl.get_server_certificate(address, timeout=5)
        (name,) = x509.load_pem_x509_certificate(pem.encode()).subject.get_attributes_for_oid(
            NameOID.ORGANIZATION_NAME
        )
        return str(name.value)

    async def hang_up(event: str) -> None:
        os.kill(server.pid, signal.SIGHUP)
        while event not in server.log():  # noqa: ASYNC110 - a log file has no event to wait for
            await trio.sleep(0.005)

    with trio.fail_after(LIMIT_S):
        async with server_with_wss(tmp_path) as server:
            address = server.address("wss")
            assert await trio.to_thread.run_sync(seen, address) == "before"
            old = await log_in(server, ("wss", Form.BINARY, 5), "old")
            write_certificate(tmp_path / "server.pem", "after")
            await hang_up('"certificate_reloaded"')
            assert await trio.to_thread.run_sync(seen, address) == "after"
            (tmp_path / "server.pem").write_text("broken")
            await hang_up('"certificate_not_reloaded"')
            assert await trio.to_thread.run_sync(seen, address) == "after"
            await old.ping()  # a connection that was there notices nothing
            await old.close()


async def test_sigterm_under_traffic_exits_cleanly_and_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    acked: dict[str, list[int]] = {}

    async def talk(uid: str, client: TestClient, started: trio.Event) -> None:
        seqs = acked[uid] = []
        async with client:
            with suppress(ConnectionLostError, trio.BrokenResourceError):
                while True:
                    posted = [await client.post("sink", PERSON, text("x" * 200)) for _ in range(20)]
                    for client_seq in posted:
                        ack = await client.sendack(client_seq)
                        assert ack.reason_code == 1
                        seqs.append(ack.message_seq)
                    started.set()

    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path) as server:
            async with trio.open_nursery() as nursery:
                for i in range(8):
                    client = await log_in(server, KINDS[i % len(TCP)], f"u{i}")
                    started = trio.Event()
                    nursery.start_soon(talk, f"u{i}", client, started)
                    await started.wait()
                begin = trio.current_time()
                assert await server.terminate() == 0
                assert trio.current_time() - begin < STOP_S
            await server.start()
            for uid, seqs in acked.items():
                answer = await server.post(
                    "/channel/messagesync",
                    login_uid="sink",
                    channel_id=uid,
                    channel_type=PERSON,
                    limit=10_000,
                )
                stored = [each["message_seq"] for each in answer["messages"]]
                assert stored == list(range(1, len(stored) + 1))
                assert seqs == list(range(1, len(seqs) + 1))
                assert len(stored) >= len(seqs) > 0
        assert server.trouble() == []


def refused_start(folder: Path, tree: dict[str, object], **environ: str) -> str:
    """Start a server that must refuse: the one sentence it says."""
    config = folder / "refused.yaml"
    config.write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "wkhost", "--config", str(config), "run"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    return sentence


async def test_a_second_server_on_the_same_data_is_refused_by_name(tmp_path: Path) -> None:
    async with running_server(tmp_path / "first") as first:
        root = tmp_path / "first" / "data"
        tree: dict[str, object] = {
            "rootDir": str(root),
            "addr": "tcp://127.0.0.1:0",
            "wsAddr": "ws://127.0.0.1:0",
            "httpAddr": "127.0.0.1:0",
        }
        sentence = await trio.to_thread.run_sync(refused_start, tmp_path, tree)
        assert str(root / "data") in sentence
        assert "in use" in sentence
        assert str(first.pid) in sentence
        # The first one does not care.
        client = await TestClient.connect(*first.address(), "a")
        assert (await client.send("b", PERSON, b"{}")).reason_code == 1
        await client.close()


@pytest.mark.parametrize(
    ("tree", "environ", "named"),
    [
        ({"tokenAuthOnn": True}, {}, "tokenAuthOnn"),
        ({"wsAddr": "nowhere"}, {}, "wsAddr"),
        ({"connIdleTime": "soon"}, {}, "connIdleTime"),
        ({}, {"WK_CLUSTER_NODEID": "5000"}, "WK_CLUSTER_NODEID"),
        ({}, {"WK_NO_SUCH_KEY": "1"}, "WK_NO_SUCH_KEY"),
    ],
)
def test_an_unknown_key_or_a_wrong_value_is_one_sentence_naming_it(
    tmp_path: Path, tree: dict[str, object], environ: dict[str, str], named: str
) -> None:
    sentence = refused_start(tmp_path, {"rootDir": str(tmp_path / "data"), **tree}, **environ)
    assert named in sentence
    assert not (tmp_path / "data").exists()
