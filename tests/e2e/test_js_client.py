"""The JS SDK from the npm registry, unmodified, under Node: what a browser app does all day."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kit.js_client import CONNECT_FAIL, CONNECTED, KICKED, JsClient
from tests.kit.server import ServerProcess, running_server
from tests.kit.tap import Tap

pytestmark = pytest.mark.e2e

PERSON = 1
GROUP = 2
MASTER = 1
WEB = 1
LIMIT_S = 60

GATE = """
import time
from plugin_sdk import Plugin, hook

class Gate(Plugin):
    @hook(blocking=True)
    def user_get(self, query):
        asked = self.data_dir / "asked"
        if query.login is not None and not asked.exists():
            asked.touch()
            time.sleep(60)
"""


@asynccontextmanager
async def clients(folder: Path, count: int) -> AsyncIterator[list[JsClient]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(JsClient.running(folder / f"client{i}.log"))
            for i in range(count)
        ]


async def history(server: ServerProcess, uid: str, channel_id: str) -> list[dict[str, Any]]:
    answer = await server.post(
        "/channel/messagesync",
        login_uid=uid,
        channel_id=channel_id,
        channel_type=PERSON,
        limit=100,
    )
    messages: list[dict[str, Any]] = answer["messages"]
    return messages


async def test_the_js_sdk_chats_in_persons_and_groups_through_moderation(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            running_server(tmp_path, None, "--plugins", "moderation") as server,
            clients(tmp_path, 3) as (a, b, c),
        ):
            for uid, client in (("a", a), ("b", b), ("c", c)):
                status = await client.connect(uid, server.address("ws"))
                assert (status["status"], status["reason"]) == (CONNECTED, 1)
            await _person_chat(a, b)
            await _moderated(a, b)
            await _kinds_of_payload(a, b)
            await server.post(
                "/channel/subscriber_add",
                channel_id="team",
                channel_type=GROUP,
                subscribers=["a", "b", "c"],
            )
            await _group_chat([a, b, c], ["a", "b", "c"])
            await a.do("subscribe", channel="news", type=7)
            assert (await a.next("suback"))["reason"] == 1
            assert not [each for each in (*a.events, *b.events, *c.events) if "taken" not in each]
        assert server.trouble() == []


async def _person_chat(a: JsClient, b: JsClient) -> None:
    """Both ways in one chat with one sequence; each sees the other's uid as the chat."""
    for seq, (sender, reader, uid, peer) in enumerate([(a, b, "a", "b"), (b, a, "b", "a")], 1):
        text = f"hello {peer}, 你好, 😀"
        sending = await sender.post(peer, text)
        ack = await sender.sendack(sending)
        assert (ack["reason"], ack["messageSeq"]) == (1, seq)
        got = await reader.message()
        assert (got["messageId"], got["messageSeq"]) == (ack["messageId"], seq)
        assert (got["from"], got["channel"], got["type"]) == (uid, uid, PERSON)
        assert got["content"] == {"type": 1, "content": text}
        assert got["clientMsgNo"] == sending["clientMsgNo"]
        assert got["redDot"]


async def _moderated(a: JsClient, b: JsClient) -> None:
    refused = await a.send("b", "this is a ForbiddenWord indeed")
    assert (refused["reason"], refused["messageSeq"]) == (11, 0)
    masked = await a.send("b", "well, DAMN it")
    assert (masked["reason"], masked["messageSeq"]) == (1, 3)
    got = await b.message()  # the refused one never came
    assert got["messageId"] == masked["messageId"]
    assert got["content"]["content"] == "well, **** it"


async def _kinds_of_payload(a: JsClient, b: JsClient) -> None:
    """Pictures, custom kinds, long and mentioning texts pass as they are; commands are commands."""
    for content in (
        {"type": 2, "url": "https://example.com/p.png", "width": 10, "height": 20},
        {"type": 4711, "nested": {"list": [1, 2.5, None, True], "quote": '"\\'}},
        {"type": 1, "content": "long " * 4000, "mention": {"all": 1, "uids": ["b"]}},
    ):
        await a.do("send", to="b", type=PERSON, content=content)
        ack = await a.sendack(await a.next("sending"))
        got = await b.message()
        assert got["content"] == content
        assert got["messageId"] == ack["messageId"]
    await a.do("send", to="b", type=PERSON, content={"type": 99, "cmd": "typing", "param": {}})
    ack = await a.sendack(await a.next("sending"))
    command = await b.next("command")
    assert (command["messageId"], command["content"]["cmd"]) == (ack["messageId"], "typing")


async def _group_chat(members: list[JsClient], uids: list[str]) -> None:
    """Everybody sees the two others' messages, in one order, and not the own ones again."""
    sent: list[tuple[str, str]] = []
    for sender, uid in zip(members, uids, strict=True):
        ack = await sender.send("team", f"{uid} speaks", GROUP)
        assert (ack["reason"], ack["messageSeq"]) == (1, len(sent) + 1)
        sent.append((ack["messageId"], uid))
    for reader, own in zip(members, uids, strict=True):
        for message_id, uid in sent:
            if uid != own:
                got = await reader.message()
                assert (got["messageId"], got["from"]) == (message_id, uid)
                assert (got["channel"], got["type"]) == ("team", GROUP)


async def test_the_js_sdk_comes_back_after_restarts_and_a_lost_sendack(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            running_server(tmp_path) as server,
            Tap.running(server.address("ws")) as tap,
            clients(tmp_path, 2) as (a, b),
        ):
            server.keep_addresses()
            await a.connect("a", tap.address)
            await b.connect("b", server.address("ws"))
            acks = [await a.send("b", "before")]
            await b.message()

            assert await server.terminate() == 0
            await server.start()
            await a.connected()
            await b.connected()
            acks.append(await a.send("b", "after SIGTERM"))
            assert (await b.message())["messageId"] == acks[-1]["messageId"]

            tap.deaf = True
            sending = await a.post("b", "its SENDACK gets lost")
            got = await b.message()
            tap.hold()
            server.kill()
            await server.start()
            await b.connected()
            tap.deaf = False
            tap.release()
            acks.append(await a.sendack(sending))
            assert (acks[-1]["reason"], acks[-1]["messageId"]) == (1, got["messageId"])
            assert (got["clientMsgNo"], got["messageSeq"]) == (sending["clientMsgNo"], 3)

            acks.append(await a.send("b", "after kill -9"))
            assert (await b.message())["messageId"] == acks[-1]["messageId"]
            stored = await history(server, "b", "a")
            assert [each["messageSeq"] for each in acks] == [1, 2, 3, 4]
            assert [(m["message_idstr"], m["message_seq"]) for m in stored] == [
                (each["messageId"], each["messageSeq"]) for each in acks
            ]
            assert stored[2]["client_msg_no"] == sending["clientMsgNo"]
            assert len(b.all("message")) == 4
            for client in (a, b):
                assert not [
                    s for s in client.all("status") if s["status"] in (CONNECT_FAIL, KICKED)
                ]
        assert server.trouble() == []


async def test_the_js_sdk_stops_when_refused_or_kicked_and_only_then(tmp_path: Path) -> None:
    async def set_token(token: str) -> None:
        await server.post("/user/token", uid="u", token=token, device_flag=WEB, device_level=MASTER)

    with trio.fail_after(LIMIT_S):
        async with (
            running_server(tmp_path, {"tokenAuthOn": True}) as server,
            clients(tmp_path, 2) as (first, second),
        ):
            address = server.address("ws")
            refused = await first.connect("u", address, "guess")
            assert (refused["status"], refused["reason"]) == (CONNECT_FAIL, 2)
            assert not await first.comes_back()
            await first.next("status", lambda each: each["reason"] == 0)  # the socket is closed

            await set_token("t1")
            assert (await first.connect("u", address, "t1"))["status"] == CONNECTED
            assert await first.comes_back()
            assert (await second.connect("u", address, "t1"))["status"] == CONNECTED
            kicked = await first.next("status", lambda each: each["status"] == KICKED)
            assert kicked["reason"] == 12
            assert not await first.comes_back()

            await set_token("t2")
            kicked = await second.next("status", lambda each: each["status"] == KICKED)
            assert kicked["reason"] == 12
            assert not await second.comes_back()
            await first.next("status", lambda each: each["reason"] == 0)
            assert (await first.connect("u", address, "t1"))["reason"] == 2
            await first.next("status", lambda each: each["reason"] == 0)
            assert (await first.connect("u", address, "t2"))["status"] == CONNECTED
        assert server.trouble() == []


async def test_a_killed_plugin_logs_no_connecting_js_client_out(tmp_path: Path) -> None:
    # The plugin's own folder is the only one that it can write to.
    asked = tmp_path / "server" / "data" / "plugins" / "gate" / "data" / "asked"
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "main.py").write_text(GATE)
    (folder / "plugin.toml").write_text(
        '[plugin]\nno = "gate"\nversion = "1.0.0"\n[run]\nmain = "main.py"\n'
        '[hooks.user_get]\npolicy = "closed"\n'
    )
    with trio.fail_after(LIMIT_S):
        async with (
            running_server(tmp_path / "server") as server,
            clients(tmp_path, 1) as (client,),
        ):
            status = await server.plugin("install", str(folder))
            await client.do(
                "connect", uid="u", token="", addr="ws://{}:{}".format(*server.address("ws"))
            )
            while not asked.exists():  # noqa: ASYNC110 - the plugin's process has no event for us
                await trio.sleep(0.005)
            os.kill(status["pid"], signal.SIGKILL)
            lost = await client.next("status")
            assert (lost["status"], lost["reason"]) == (0, 0)  # closed, not refused
            assert await client.comes_back()
            await client.connected()
            assert (await client.send("u", "to myself"))["reason"] == 1
            assert (await server.plugin("info", "gate"))["pid"] != status["pid"]
        assert server.trouble() == []
