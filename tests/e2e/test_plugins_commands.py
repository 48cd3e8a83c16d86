"""What `wkhost plugin ...` changes is seen by the messages that flow meanwhile, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from tests.kit.load import PERSON, Load, check_deliveries, check_history
from tests.kit.plugins import write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode

pytestmark = pytest.mark.e2e

RATE = 100.0
BAD = b'{"type":1,"content":"a forbiddenword"}'
SUCCESS, NOT_ALLOWED = int(ReasonCode.SUCCESS), int(ReasonCode.NOT_ALLOW_SEND)
LIMIT_S = 90

APPENDER = """
class Appender(Plugin):
    @hook
    def send(self, message):
        return Replace(message.payload + b"{letter}")
"""


async def test_moderation_comes_and_goes_while_messages_flow(tmp_path: Path) -> None:
    good, bad = Load(3, rate=RATE), Load(2, rate=RATE / 4, payload=BAD, prefix="bad-")
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            async with good.running(server.address()), bad.running(server.address()):
                for install, remove in (("install", "disable"), ("enable", "uninstall")):
                    await _all_get(bad, SUCCESS)
                    await server.plugin(install, "moderation")
                    await _all_get(bad, NOT_ALLOWED)
                    listed = await server.plugin("list")
                    assert [(each["no"], each["state"]) for each in listed] == [
                        ("moderation", "running")
                    ]
                    await server.plugin(remove, "moderation")
                    await _all_get(bad, SUCCESS)
            assert await server.plugin("list") == []
            assert not good.refused, "a good message is never refused, whatever comes and goes"
            assert {fate.reason for fate in bad.refused} == {NOT_ALLOWED}
            for load in (good, bad):
                assert all(fate.reason for fate in load.fates)
                check_deliveries(load)
                await check_history(server, load)
            assert server.trouble() == []


async def _all_get(load: Load, reason: int) -> None:
    """Every message that is sent from now on gets `reason`."""
    start = len(load.fates)
    await load.wait_acks(int(RATE / 4))
    fates = [fate for fate in load.fates[start:] if fate.reason]
    assert fates
    assert {fate.reason for fate in fates} == {reason}


def _appender(folder: Path, no: str, letter: str, **place: Any) -> str:
    """Write a plugin that puts its letter after every payload; returns its folder."""
    code = APPENDER.format(letter=letter)
    return str(write_plugin(folder, no, code, hooks={"send": {"payload": True}}, **place))


async def _taken(
    server: ServerProcess, writer: TestClient, reader: TestClient
) -> tuple[list[str], bytes]:
    """Return the order that is shown, and the payload of a message that took it."""
    shown = await server.plugin("order")
    ack = await writer.send("reader", PERSON, b">", client_msg_no=uuid4().hex)
    assert ack.reason_code == SUCCESS
    return [place["no"] for place in shown.get("send", ())], (await reader.recv()).payload


async def test_the_order_that_is_shown_is_the_order_that_messages_take(tmp_path: Path) -> None:
    newer = _appender(tmp_path, "a", "A", stage="guard", priority=9, version="2.0.0")
    changes: list[tuple[tuple[str, str], list[str], bytes]] = [
        (("install", _appender(tmp_path, "a", "A")), ["a"], b">A"),
        (("install", _appender(tmp_path, "b", "B", priority=5)), ["b", "a"], b">BA"),
        (("install", _appender(tmp_path, "c", "C", stage="guard")), ["c", "b", "a"], b">CBA"),
        # An upgrade takes the place of its own manifest.
        (("install", newer), ["a", "c", "b"], b">ACB"),
        (("disable", "c"), ["a", "b"], b">AB"),
        (("enable", "c"), ["a", "c", "b"], b">ACB"),
        (("uninstall", "a"), ["c", "b"], b">CB"),
    ]
    with trio.fail_after(LIMIT_S):
        async with (
            running_server(tmp_path / "server") as server,
            await TestClient.connect(*server.address(), "reader") as reader,
            await TestClient.connect(*server.address(), "writer") as writer,
        ):
            assert await _taken(server, writer, reader) == ([], b">")
            for command, places, payload in changes:
                await server.plugin(*command)
                assert await _taken(server, writer, reader) == (places, payload), command
        # What is changed while it is stopped holds when it starts again.
        await server.plugin("disable", "b")
        listed = await server.plugin("list")
        assert {each["no"]: each["enabled"] for each in listed} == {"b": False, "c": True}
        async with (
            running_server(tmp_path / "server") as server,
            await TestClient.connect(*server.address(), "reader") as reader,
            await TestClient.connect(*server.address(), "writer") as writer,
        ):
            assert await _taken(server, writer, reader) == (["c"], b">C")
