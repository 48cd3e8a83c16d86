"""A plugin that takes 200 ms for every message in every lane is reloaded and upgraded meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.kit.load import Load, check_deliveries, check_history, percentile
from tests.kit.plugins import act, agreed_install, ask, info, write_plugin
from tests.kit.server import running_server
from wkhost.link.contract import PluginStatus, RollbackPlugin

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

RATE = 60
LIMIT_S = 90

SLOW = """
class Slow(Plugin):
    @hook
    async def send(self, message):
        await asyncio.sleep(0.2)
        await self.host.kv.put(b"last", str(message.message_id).encode())
"""


def slow(folder: Path, version: str) -> str:
    hooks = {"send": {"policy": "closed"}}
    capabilities = {"kv_bytes": 4096}
    return str(
        write_plugin(folder, "slow", SLOW, hooks=hooks, capabilities=capabilities, version=version)
    )


async def test_a_slow_plugin_in_every_lane_changes_hands_without_a_loss(tmp_path: Path) -> None:
    """Every call writes a value; those that are refused because another process has taken over
    are decided by that one."""
    load = Load(12, rate=RATE, group=True)
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"plugin": {"timeout": "10s"}}) as server:
            await server.plugin("install", slow(tmp_path, "1.0.0"))
            await load.prepare(server)
            async with load.running(server.address()):
                await load.wait_acks(RATE)
                began = time.monotonic()
                await act(server, "slow", "reload")
                await load.wait_acks(RATE // 2)
                newer = await ask(server, agreed_install(slow(tmp_path, "2.0.0")))
                assert isinstance(newer, PluginStatus), newer
                assert newer.version == "2.0.0"
                await load.wait_acks(RATE // 2)
                back = await ask(server, RollbackPlugin("slow"))
                assert isinstance(back, PluginStatus), back
                assert back.version == "1.0.0"
                ended = time.monotonic()
                await load.wait_acks(RATE)
            assert not load.refused
            assert len(load.acked) == len(load.fates)
            check_deliveries(load)
            await check_history(server, load)
            assert (await info(server, "slow")).restarts == 0
    busy = load.latencies_ms(began, ended)
    print(f"\na 200 ms plugin over three changes: p99 {percentile(busy, 0.99):.0f} ms")
