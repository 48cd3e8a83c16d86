"""Bots that answer each other: the chain ends, whatever they do, also over a restart."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.kit.load import GROUP
from tests.kit.plugins import notes, wait_notes, write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode

pytestmark = pytest.mark.e2e

LIMIT_S = 60
MAX_HOP = 4
SUCCESS, LOOP = int(ReasonCode.SUCCESS), int(ReasonCode.NOT_ALLOW_SEND)

BOT = """
class Bot(Plugin):
    @hook
    async def persist_after(self, messages):
        for message in messages:
            if message.from_uid in {listens_to}:
                sent = await self.host.send_message(
                    message.channel_id, message.channel_type, b"answer", from_uid="{uid}",
                    client_msg_no=f"{uid}-{{message.message_id}}"{cause},
                )
                note(self, code=sent.reason_code, why=sent.reason, seq=message.message_seq)
"""


def bot(
    folder: Path,
    uid: str,
    listens_to: tuple[str, ...],
    *,
    cause: str = ", cause=message",
    start: str = "now",
    rate: int = 10,
) -> str:
    code = BOT.format(uid=uid, listens_to=listens_to, cause=cause)
    hooks = {"persist_after": {"from": start}}
    capabilities = {"send_as": [uid], "send_rate": rate}
    return str(write_plugin(folder, uid, code, hooks=hooks, capabilities=capabilities))


async def group(server: ServerProcess) -> None:
    uids = ["person", "one", "two"]
    await server.post("/channel", channel_id="g", channel_type=GROUP, subscribers=uids)


async def history(server: ServerProcess) -> list[str]:
    """Return who sent the messages of the group, in order."""
    found = await server.post(
        "/channel/messagesync",
        login_uid="person",
        channel_id="g",
        channel_type=GROUP,
        limit=1000,
        pull_mode=1,
    )
    return [each["from_uid"] for each in found["messages"]]


async def say(server: ServerProcess) -> None:
    async with await TestClient.connect(*server.address(), "person") as client:
        assert (await client.send("g", GROUP, b"hello bots")).reason_code == SUCCESS


async def test_two_bots_that_answer_each_other_stop_at_hop_four(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await group(server)
            await server.plugin("install", bot(tmp_path, "one", ("person", "two")))
            await server.plugin("install", bot(tmp_path, "two", ("one",)))
            await say(server)
            (refused,) = await wait_notes(server, "one", code=LOOP)
            assert refused["why"].startswith("plugin_loop")
            assert await history(server) == ["person", "one", "two", "one", "two"]
            assert len(await history(server)) == 1 + MAX_HOP


async def test_a_restart_of_the_server_does_not_forget_the_hops(tmp_path: Path) -> None:
    """The second bot comes after a restart and reads from the log what it missed."""
    with trio.fail_after(LIMIT_S):
        server = ServerProcess(tmp_path / "server")
        await server.start()
        try:
            await group(server)
            await server.plugin("install", bot(tmp_path, "one", ("person", "two")))
            await say(server)
            await wait_notes(server, "one", code=SUCCESS)
            assert await server.terminate() == 0
            await server.start()
            second = bot(tmp_path, "two", ("one",), start="beginning")
            await server.plugin("install", second)
            await wait_notes(server, "one", code=LOOP)
            assert await history(server) == ["person", "one", "two", "one", "two"]
        finally:
            with trio.CancelScope(shield=True):
                assert await server.terminate() == 0


async def test_bots_that_drop_the_lineage_are_held_to_their_rate(tmp_path: Path) -> None:
    rate, watched_s = 3, 3.0
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await group(server)
            for uid, heard in (("one", ("person", "two")), ("two", ("one",))):
                # An empty cause is what a bot that means harm would bring.
                source = bot(tmp_path, uid, heard, cause="", rate=rate)
                await server.plugin("install", source)
            began = time.monotonic()
            await say(server)
            await trio.sleep(watched_s)
            counts = Counter(await history(server))
            took = time.monotonic() - began
            # One second's worth may come at once; then it is the rate.
            most = rate * (took + 1)
            assert 2 <= counts["one"] <= most
            assert 2 <= counts["two"] <= most
            assert not [each for each in notes(server, "one") if each.get("code") == LOOP]
