"""Each hook is called at its place on the path, seen from the plugin's side of a whole server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kit.plugins import act, notes, wait_notes, write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode
from wkhost.protocol.connection import Form
from wkhost.types import Flags

pytestmark = pytest.mark.e2e

PERSON, GROUP = 1, 2
SUCCESS, AUTH_FAIL, BAN = int(ReasonCode.SUCCESS), int(ReasonCode.AUTH_FAIL), int(ReasonCode.BAN)
SEND_BAN = int(ReasonCode.SEND_BAN)
LIMIT_S = 60
EXAMPLES = Path(__file__).parents[2] / "examples"


async def connect(server: ServerProcess, uid: str, token: str = "", **how: Any) -> TestClient:
    return await TestClient.connect(*server.address(), uid, token, **how)


# --- send and persist_after ---------------------------------------------------------------------

WITNESS = """
class Witness(Plugin):
    @hook
    def send(self, message):
        note(self, hook="send", door=message.origin.door, text=message.payload.decode(),
             id=message.message_id, seq=message.message_seq, user=message.from_uid)

    @hook
    async def persist_after(self, messages):
        found = await self.host.get_messages(m.message_id for m in messages)
        stored = {m.message_id for m in found}
        for m in messages:
            note(self, hook="persist_after", text=m.payload.decode(), id=m.message_id,
                 seq=m.message_seq, stored=m.message_id in stored)
"""

SPEAKER = """
class Speaker(Plugin):
    @hook
    async def send(self, message):
        if message.payload == b"speak":
            sent = await self.host.send_message("peer", 1, b"by a plugin", from_uid="robot")
            note(self, id=sent.message_id, seq=sent.message_seq, reason=sent.reason_code)
"""


async def _install_witness(server: ServerProcess, folder: Path) -> None:
    witness = write_plugin(
        folder,
        "witness",
        WITNESS,
        hooks={"send": {"payload": True}, "persist_after": {"payload": True}},
        capabilities={"messages_read": True},
    )
    speaker = write_plugin(
        folder,
        "speaker",
        SPEAKER,
        hooks={"send": {"payload": True}},
        capabilities={"send_as": ["robot"]},
    )
    await server.plugin("install", str(witness))
    await server.plugin("install", str(speaker))


async def test_send_comes_once_from_every_door_and_persist_after_when_it_is_stored(
    tmp_path: Path,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await _install_witness(server, tmp_path)
            doors = await _send_by_every_door(server)
            for text, door in doors.items():
                (asked,) = await wait_notes(server, "witness", hook="send", text=text)
                assert (asked["door"], asked["seq"]) == (door, 0)
                if text == "not stored":
                    continue
                (seen,) = await wait_notes(server, "witness", hook="persist_after", text=text)
                assert seen["stored"]
                assert seen["seq"] > 0
                assert seen["id"] == asked["id"]
            (spoken,) = notes(server, "speaker")
            (seen,) = await wait_notes(server, "witness", hook="persist_after", text="by a plugin")
            assert (spoken["id"], spoken["seq"]) == (seen["id"], seen["seq"])
            noted = [(each["hook"], each["text"]) for each in notes(server, "witness")]
            assert sorted(noted) == sorted(
                [("send", text) for text in doors]
                + [("persist_after", text) for text in doors if text != "not stored"]
            )
            assert server.trouble() == []


async def _send_by_every_door(server: ServerProcess) -> dict[str, str]:
    """Send one message by each door; return the text and the door that the plugin should see."""
    async with (
        await connect(server, "binary") as binary,
        await connect(server, "json", form=Form.JSONRPC) as rpc,
    ):
        assert (await binary.send("peer", PERSON, b"by tcp")).reason_code == SUCCESS
        assert (await rpc.send("peer", PERSON, b"by json-rpc")).reason_code == SUCCESS
        first = await binary.send("peer", PERSON, b"sent twice", client_msg_no="twice")
        again = await binary.send("peer", PERSON, b"sent twice", client_msg_no="twice")
        assert (first.message_id, first.message_seq) == (again.message_id, again.message_seq)
        ack = await binary.send("peer", PERSON, b"not stored", flags=Flags.NO_PERSIST)
        assert ack.reason_code == SUCCESS
        assert (await binary.send("peer", PERSON, b"speak")).reason_code == SUCCESS
    await server.post(
        "/message/send",
        from_uid="backend",
        channel_id="peer",
        channel_type=PERSON,
        payload=base64.b64encode(b"by http").decode(),
    )
    await server.post(
        "/message/sendbatch",
        from_uid="backend",
        subscribers=["batch"],
        payload=base64.b64encode(b"by http batch").decode(),
    )
    return {
        "by tcp": "client",
        "by json-rpc": "client",
        "sent twice": "client",
        "not stored": "client",
        "speak": "client",
        "by a plugin": "speaker",
        "by http": "http",
        "by http batch": "http",
    }


# --- look-ups -----------------------------------------------------------------------------------

LOOKUPS = """
class Lookups(Plugin):
    @hook
    async def user_get(self, query):
        login = query.login
        note(self, hook="user_get", uid=query.uid, login=login is not None,
             token=login.token if login else "")
        await asyncio.sleep(0.2)
        if login and query.uid == "villain":
            return Refuse(19, "go away")
        if query.uid == "muted":
            return UserAnswer(authenticated=True, send_ban=True, ttl_ms=60_000)
        if login and query.uid.startswith("guest"):
            return UserAnswer(authenticated=login.token == "secret", ttl_ms=60_000)

    @hook
    async def channel_get(self, query):
        note(self, hook="channel_get", channel=query.channel_id)
        await asyncio.sleep(0.2)
        if query.channel_id == "closed":
            return ChannelAnswer(ban=True, ttl_ms=60_000)
        if query.channel_id == "brief":
            return ChannelAnswer(ban=True, ttl_ms=300)
"""


async def _install_lookups(server: ServerProcess, folder: Path) -> None:
    plugin = write_plugin(
        folder,
        "lookups",
        LOOKUPS,
        hooks={"user_get": {}, "channel_get": {}},
        capabilities={"token": True},
    )
    await server.plugin("install", str(plugin))


def _asked(server: ServerProcess, **fields: Any) -> int:
    return sum(fields.items() <= each.items() for each in notes(server, "lookups"))


async def test_user_get_decides_logins_asked_once_for_many(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"tokenAuthOn": True}) as server:
            await _install_lookups(server, tmp_path)
            accepted: list[TestClient] = []

            async def log_in(number: int) -> None:
                client = await connect(server, "guest1", "secret", device_id=f"d{number}")
                assert client.connack.reason_code == SUCCESS
                accepted.append(client)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(log_in, number)
            await log_in(99)
            assert _asked(server, uid="guest1", login=True, token="secret") == 1
            for uid, token, reason in (
                ("guest1", "wrong", AUTH_FAIL),
                ("villain", "secret", BAN),
                ("unknown", "secret", AUTH_FAIL),
            ):
                async with await connect(server, uid, token) as refused:
                    assert refused.connack.reason_code == reason
            # A user of the kernel's own: the plugin says nothing, the stored token holds.
            await server.post("/user/token", uid="own", token="mine", device_flag=1)
            async with await connect(server, "own", "mine") as own:
                assert own.connack.reason_code == SUCCESS
            for client in accepted:
                await client.close()


async def test_user_get_and_channel_get_override_records_for_their_ttl(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await _install_lookups(server, tmp_path)
            await server.post(
                "/channel", channel_id="closed", channel_type=GROUP, subscribers=["a", "b"]
            )
            async with (
                await connect(server, "a") as a,
                await connect(server, "b") as b,
                await connect(server, "muted") as muted,
            ):
                seqs = [
                    (client, await client.post("closed", GROUP, b"x"))
                    for _ in range(5)
                    for client in (a, b)
                ]
                for client, seq in seqs:
                    assert (await client.sendack(seq)).reason_code == BAN
                assert (await a.send("closed", GROUP, b"x")).reason_code == BAN
                assert _asked(server, channel="closed") == 1
                assert (await muted.send("b", PERSON, b"x")).reason_code == SEND_BAN
                assert (await a.send("b", PERSON, b"x")).reason_code == SUCCESS
                assert (await b.recv()).payload == b"x"
                assert _asked(server, uid="muted", login=False) == 1
                # A short-lived answer is asked for again.
                await a.send("brief", GROUP, b"x")
                assert _asked(server, channel="brief") == 1
                while _asked(server, channel="brief") == 1:
                    assert (await a.send("brief", GROUP, b"x")).reason_code == BAN
            # Without the plugin the kernel's own records hold again.
            await act(server, "lookups", "disable")
            async with await connect(server, "a") as a:
                assert (await a.send("closed", GROUP, b"x")).reason_code == SUCCESS


# --- receive ------------------------------------------------------------------------------------

RECEIVER = """
class Receiver(Plugin):
    @hook
    def receive(self, message, uids):
        note(self, id=message.message_id, uids=sorted(uids), text=message.payload.decode())
"""


async def test_receive_tells_of_those_who_are_offline(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, "receiver", RECEIVER, hooks={"receive": {"payload": True}})
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", str(plugin))
            uids = ["sender", "online", "away1", "away2"]
            await server.post("/channel", channel_id="g", channel_type=GROUP, subscribers=uids)
            async with (
                await connect(server, "sender") as sender,
                await connect(server, "online") as online,
            ):
                here = await sender.send("online", PERSON, b"to one who is here")
                assert (await online.recv()).message_id == here.message_id
                there = await sender.send("away1", PERSON, b"to one who is away")
                group = await sender.send("g", GROUP, b"to the group")
                await wait_notes(server, "receiver", id=group.message_id)
            assert notes(server, "receiver") == [
                {"id": there.message_id, "uids": ["away1"], "text": "to one who is away"},
                {"id": group.message_id, "uids": ["away1", "away2"], "text": "to the group"},
            ]


async def test_the_example_bot_answers_whoever_writes_to_it(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", str(EXAMPLES / "bot_plugin"))
            async with await connect(server, "human") as human:
                hello = json.dumps({"type": 1, "content": "hello"}).encode()
                assert (await human.send("echo-bot", PERSON, hello)).reason_code == SUCCESS
                answer = await human.recv()
                assert answer.from_uid == "echo-bot"
                assert json.loads(answer.payload)["content"] == "You said: hello"


# --- life ---------------------------------------------------------------------------------------

STOPPER = """
class Stopper(Plugin):
    @hook
    def send(self, message):
        pass

    @hook
    def start(self):
        self.birth = time.time_ns()
        note(self, started=self.birth)

    @hook
    async def stop(self, reason):
        await asyncio.sleep(0.05)
        note(self, stopped=self.birth, reason=reason)
"""


async def test_stop_tells_each_process_why_it_ends(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, "stopper", STOPPER, hooks={"send": {}})
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", str(plugin))
            await act(server, "stopper", "reload")
            await wait_notes(server, "stopper", reason="reload")
            await act(server, "stopper", "disable")
            assert notes(server, "stopper")[-1]["reason"] == "disable"
            await act(server, "stopper", "enable")
        found = notes(server, "stopper")
    started = [each["started"] for each in found if "started" in each]
    stopped = {each["stopped"]: each["reason"] for each in found if "stopped" in each}
    assert list(stopped) == started
    assert list(stopped.values()) == ["reload", "disable", "shutdown"]
