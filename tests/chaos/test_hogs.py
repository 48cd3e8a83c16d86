"""Plugins that take all they can get, and plugins that hang: the server goes on, so do the others.

Figures of what users notice: `wkhost bench hogs`. Here the bounds are generous.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import trio

from tests.kit.load import Load, check_deliveries, check_history
from tests.kit.plugins import act, info, notes, write_plugin
from tests.kit.server import ServerProcess, running_server
from wkhost.bench.hogs.kinds import KINDS, NO, write_hog

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

ALWAYS = ("cpu", "calls")
"""Kinds that every run tries."""
RATE = 100
LIMIT_S = 90
HOGGING_S = 4.0
SERVER_GROWTH_BYTES = 48 * 1024 * 1024
STOPPED_WITHIN_S = 20.0

GOOD = """
class Good(Plugin):
    @hook
    def send(self, message):
        return Replace(message.payload.replace(b"there", b"again"))
"""
HANGS = """
class Hangs(Plugin):
    @hook
    def send(self, message):
        while b"spin" in message.payload:
            pass
"""


def _rss(server: ServerProcess) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


async def _install(server: ServerProcess, folder: Path) -> None:
    await server.plugin("install", str(folder))


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
async def test_a_hog_is_contained_and_the_good_plugin_answers(kind: str, tmp_path: Path) -> None:
    load = Load(4, rate=RATE)
    good = write_plugin(tmp_path, "good", GOOD, hooks={"send": {"payload": True}})
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await _install(server, good)
            async with load.running(server.address()):
                await load.wait_acks(RATE)
                before = _rss(server)
                await _install(server, write_hog(tmp_path, kind, "persist_after"))
                await trio.sleep(HOGGING_S)
                sent = len(load.fates)
                await load.wait_acks(RATE)
                grown = _rss(server) - before
                if kind == "cpu":
                    # More busy threads than it may have: how ever idle the machine is.
                    assert "gives way" in (await info(server, NO)).detail
                began = time.monotonic()
                await act(server, NO, "disable")
                stopped_s = time.monotonic() - began
            assert len(load.fates) > sent, "the server went on"
            assert not load.refused
            assert (await info(server, "good")).restarts == 0
            assert grown < SERVER_GROWTH_BYTES
            assert stopped_s < STOPPED_WITHIN_S
            check_deliveries(load)
            await check_history(server, load)
    assert not notes(server, "hog")


@pytest.mark.parametrize("how", ["spins", "stopped"])
async def test_a_process_that_hangs_is_replaced(how: str, tmp_path: Path) -> None:
    load = Load(2, rate=20)
    folder = write_plugin(
        tmp_path, "hangs", HANGS, hooks={"send": {"payload": True, "policy": "closed"}}
    )
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await _install(server, folder)
            async with load.running(server.address()):
                await load.wait_acks(20)
                status = await info(server, "hangs")
                if how == "stopped":
                    os.kill(status.pid, signal.SIGSTOP)
                else:
                    spin = Load(1, rate=1, payload=b"spin", prefix="x")
                    async with spin.running(server.address()):
                        await spin.wait_acks(1)
                while (await info(server, "hangs")).restarts == 0:  # noqa: ASYNC110 - a process
                    await trio.sleep(0.05)
                while not load.acked or load.acked[-1].due < time.monotonic() - 1:
                    await load.wait_acks(1)
            assert "it hangs" in server.cli("plugin", "logs", "hangs").stdout
            check_deliveries(load)
            await check_history(server, load)


@pytest.mark.slow
async def test_a_slow_call_is_not_taken_for_a_process_that_hangs(tmp_path: Path) -> None:
    code = """
class Slow(Plugin):
    @hook
    async def send(self, message):
        if b"slow" in message.payload:
            await asyncio.sleep(13)
"""
    slow = Load(1, rate=0.2, payload=b"slow")
    folder = write_plugin(
        tmp_path, "slow", code, hooks={"send": {"payload": True, "policy": "closed"}}
    )
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await _install(server, folder)
            async with slow.running(server.address()):
                await slow.wait_acks(3)
            assert (await info(server, "slow")).restarts == 0
