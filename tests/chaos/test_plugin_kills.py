"""A plugin killed again and again leaves nothing behind, and a spare serves at once.

CHAOS_SPARE_KILLS sets how often (16; `make chaos` 120). Growth is judged between the kill after
which things have settled and the last one.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import trio

from tests.kit.load import PERSON, percentile
from tests.kit.plugins import info, wait_state, write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

KILLS = int(os.environ.get("CHAOS_SPARE_KILLS", "16"))
SETTLED = min(20, KILLS // 2)
GROWTH_BYTES = 1024 * 1024
SUCCESS, SYSTEM_ERROR = int(ReasonCode.SUCCESS), int(ReasonCode.SYSTEM_ERROR)
POLL_S = 0.02
TRY_S = 0.002
QUIET_POLLS = 5
"""The clock of CPU times ticks every 10 ms."""

GUARD = """
class Guard(Plugin):
    @hook
    async def send(self, message):
        if b"hold" in message.payload:
            note(self, held=message.message_id)
            await asyncio.sleep(60)
        return Replace(message.payload + b" seen")
"""


class Look:
    """What the server holds: descriptors, processes below it, memory, socket files."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        root = psutil.Process(server.process.pid)
        self.descriptors = root.num_fds()
        below = root.children(recursive=True)
        self.zombies = sum(each.status() == psutil.STATUS_ZOMBIE for each in below)
        self.processes = len(below)
        self.rss_bytes = root.memory_info().rss
        self.cpu_s = sum(sum(each.cpu_times()[:2]) for each in below)


async def settle(server: ServerProcess, processes: int) -> Look:
    """Wait until there are as many processes as at the start, and all have done what they had to
    do: the plugin serves, its spare has imported its code."""
    quiet = 0
    before = Look(server)
    while quiet < QUIET_POLLS:
        await trio.sleep(POLL_S)
        look = Look(server)
        calm = look.processes == processes and not look.zombies and look.cpu_s <= before.cpu_s
        quiet = quiet + 1 if calm else 0
        before = look
    return before


async def test_deaths_leave_nothing_and_a_spare_serves_at_once(tmp_path: Path) -> None:
    serving_ms: list[float] = []
    # The journal is the default one, which these messages begin to fill.
    settings = {"plugin": {"spare": True, "crashes": 100_000}}
    hooks = {"send": {"payload": True, "policy": "closed"}}
    with trio.fail_after(60 + 5 * KILLS):
        async with running_server(tmp_path / "server", settings) as server:
            await server.plugin("install", str(write_plugin(tmp_path, "guard", GUARD, hooks=hooks)))
            async with await TestClient.connect(*server.address(), "victim") as client:
                await trio.sleep(1)
                first = Look(server)
                settled = first
                for number in range(1, KILLS + 1):
                    pid = (await info(server, "guard")).pid
                    killed = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    while True:
                        ack = await client.send("peer", PERSON, b"x")
                        if ack.reason_code == SUCCESS and time.monotonic() - killed > 0.001:
                            break
                        assert ack.reason_code in (SUCCESS, SYSTEM_ERROR)
                        await trio.sleep(TRY_S)
                    if (await info(server, "guard")).pid == pid:
                        await wait_state(server, "guard", "running")
                        continue
                    serving_ms.append((time.monotonic() - killed) * 1000)
                    look = await settle(server, first.processes)
                    if number == SETTLED:
                        settled = look
                last = await settle(server, first.processes)
            assert (await info(server, "guard")).restarts >= KILLS - 1
    serving_ms.sort()
    growth = last.rss_bytes - settled.rss_bytes
    print(
        f"\n{KILLS} kills: serving again from a spare p50 {percentile(serving_ms, 0.5):.0f} ms, "
        f"p95 {percentile(serving_ms, 0.95):.0f} ms; from kill {SETTLED} on the server grew by "
        f"{growth / 1024:.0f} KiB; descriptors {first.descriptors} -> {last.descriptors}"
    )
    assert last.descriptors <= first.descriptors
    assert growth < GROWTH_BYTES
