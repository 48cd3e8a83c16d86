"""A plugin may refuse a configuration; one that it accepts holds for whole calls and is kept."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.kit.plugins import ask, write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode
from wkhost.link.contract import Error, PluginConfig, SetPluginConfig

pytestmark = pytest.mark.e2e

PERSON = 1
LIMIT_S = 60

LEVELS = """
class Levels(Plugin):
    @hook
    async def send(self, message):
        level = self.config["level"]
        await asyncio.sleep(0.01)
        # One call has one configuration, from its beginning to its end.
        return Replace(b"%d %d" % (level, self.config["level"]))

    @hook
    def config_update(self, config):
        if config["level"] > 5:
            return Veto("too high for me")
"""


async def _level_seen(server: ServerProcess) -> bytes:
    async with (
        await TestClient.connect(*server.address(), "a") as a,
        await TestClient.connect(*server.address(), "b") as b,
    ):
        ack = await a.send("b", PERSON, b"x", client_msg_no=uuid4().hex)
        assert ack.reason_code == ReasonCode.SUCCESS
        return (await b.recv()).payload


async def test_config_update_may_say_no_and_later_messages_see_what_was_accepted(
    tmp_path: Path,
) -> None:
    hooks = {"send": {"payload": True}}
    plugin = write_plugin(tmp_path, "levels", LEVELS, hooks=hooks, config={"level": 1})
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", str(plugin))
            assert await _level_seen(server) == b"1 1"
            accepted = await ask(server, SetPluginConfig("levels", {"level": 3}))
            assert isinstance(accepted, PluginConfig), accepted
            assert await _level_seen(server) == b"3 3"
            refused = await ask(server, SetPluginConfig("levels", {"level": 7}))
            assert isinstance(refused, Error), refused
            assert "too high for me" in refused.text
            assert await _level_seen(server) == b"3 3"
        async with running_server(tmp_path / "server") as server:
            assert await _level_seen(server) == b"3 3"
