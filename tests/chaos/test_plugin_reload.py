"""Reloads under load: no message is lost, doubled, reordered or refused.

CHAOS_RELOADS sets how often (6; `make chaos` 20), CHAOS_RATE the messages a second (300; 1000).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.kit.load import PERSON, Load, check_deliveries, check_history, percentile
from tests.kit.plugins import (
    act,
    agreed_install,
    ask,
    info,
    notes,
    wait_notes,
    wait_state,
    write_plugin,
)
from tests.kit.server import ServerProcess, running_server
from tests.kit.until import until
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode
from wkhost.link.contract import PluginStatus

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

RELOADS = int(os.environ.get("CHAOS_RELOADS", "6"))
RATE = float(os.environ.get("CHAOS_RATE", "300"))
QUIET_S = 3.0
SUCCESS, SYSTEM_ERROR = int(ReasonCode.SUCCESS), int(ReasonCode.SYSTEM_ERROR)
LIMIT_S = 90
WARM_RELOADS, MANY_RELOADS = 20, 100
GROWTH_BYTES = 1024 * 1024
"""Of the server over so many reloads, after the first ones."""

STEADY = """
class Steady(Plugin):
    @hook
    async def send(self, message):
        if b"hold" in message.payload:
            note(self, held=message.message_id, attempt=message.attempt)
            if message.attempt == 1:
                await asyncio.sleep(3)
            return None
        # Some calls are always on their way when a reload comes.
        if message.message_id % 10 == 0:
            await asyncio.sleep(0.02)
        return None

    @hook
    def persist_after(self, messages):
        note(self, seen=[m.message_id for m in messages])
"""


def _plugin(folder: Path, no: str, version: str = "1.0.0", **keys: Any) -> str:
    hooks: dict[str, dict[str, Any]] = {
        "send": {"payload": True, "policy": "closed"},
        "persist_after": {},
    }
    return str(write_plugin(folder, no, STEADY, hooks=hooks, version=version, **keys))


async def test_reloads_under_load_lose_double_reorder_and_refuse_nothing(tmp_path: Path) -> None:
    load = Load(8, rate=RATE, group=True)
    reload_s: list[float] = []
    with trio.fail_after(LIMIT_S + 4 * RELOADS):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", _plugin(tmp_path, "steady"))
            await load.prepare(server)
            async with load.running(server.address()):
                await load.wait_acks(int(RATE))
                quiet = time.monotonic()
                await load.wait_until(quiet + QUIET_S)
                begin = time.monotonic()
                for _ in range(RELOADS):
                    started = time.monotonic()
                    await act(server, "steady", "reload")
                    reload_s.append(time.monotonic() - started)
                    await load.wait_acks(int(RATE * 0.3))
                end = time.monotonic()
            assert (await info(server, "steady")).generation == RELOADS + 1
            _check_whole(load)
            await check_history(server, load)
            await _check_observed_once(server, load)
    calm, busy = load.latencies_ms(quiet, begin), load.latencies_ms(begin, end)
    print(
        f"\n{RELOADS} reloads at {RATE:.0f} msg/s, {len(load.acked)} messages: "
        f"p50/p99 quiet {percentile(calm, 0.5):.1f}/{percentile(calm, 0.99):.1f} ms, "
        f"during reloads {percentile(busy, 0.5):.1f}/{percentile(busy, 0.99):.1f} ms, "
        f"max {busy[-1]:.1f} ms; a reload took {max(reload_s):.2f} s at most"
    )


def _check_whole(load: Load) -> None:
    assert not load.refused
    assert len(load.acked) == len(load.fates)
    check_deliveries(load)


async def _check_observed_once(server: ServerProcess, load: Load) -> None:
    """Planned reloads hand the observer over: it sees every message once, in commit order."""
    while True:
        seen = [number for each in notes(server, "steady") for number in each.get("seen", ())]
        if len(seen) >= len(load.fates):
            break
        await trio.sleep(0.02)
    assert len(seen) == len(set(seen)) == len(load.fates)
    assert set(seen) == {fate.message_id for fate in load.acked}


async def test_two_plugins_reload_at_once_twice_and_into_a_new_version(tmp_path: Path) -> None:
    load = Load(4, rate=RATE / 2, group=True)
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"plugin": {"timeout": "10s"}}) as server:
            await server.plugin("install", _plugin(tmp_path, "steady", stage="guard"))
            await server.plugin("install", _plugin(tmp_path, "other"))
            await load.prepare(server)
            async with (
                await TestClient.connect(*server.address(), "victim") as client,
                load.running(server.address()),
            ):
                held = await client.post("peer", PERSON, b"hold")
                await wait_notes(server, "steady")
                # The second round comes while the first is still draining.
                for _ in range(2):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(act, server, "steady", "reload")
                        nursery.start_soon(act, server, "other", "reload")
                newer = _plugin(tmp_path, "other", version="1.1.0", stage="seal")
                status = await ask(server, agreed_install(newer))
                assert isinstance(status, PluginStatus)
                assert (status.version, status.state) == ("1.1.0", "running")
                await load.wait_acks(int(RATE / 2))
                assert (await client.sendack(held)).reason_code == SUCCESS
            _check_whole(load)
            await check_history(server, load)
            places = await server.plugin("order")
            assert [place["no"] for place in places["send"]] == ["steady", "other"]


async def test_calls_at_an_old_process_that_dies_go_to_the_new_one(tmp_path: Path) -> None:
    load = Load(4, rate=RATE / 2)
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"plugin": {"timeout": "10s"}}) as server:
            await server.plugin("install", _plugin(tmp_path, "steady"))
            async with (
                await TestClient.connect(*server.address(), "victim") as client,
                load.running(server.address()),
            ):
                seqs = [await client.post(f"peer{i}", PERSON, b"hold") for i in range(5)]
                await wait_notes(server, "steady", 5, attempt=1)
                old = (await info(server, "steady")).pid
                new = (await act(server, "steady", "reload")).pid
                assert new != old
                os.kill(old, signal.SIGKILL)
                killed = time.monotonic()
                for seq in seqs:
                    assert (await client.sendack(seq)).reason_code == SUCCESS
                assert time.monotonic() - killed < 2, "they did not wait for the old process"
                await wait_notes(server, "steady", 5, attempt=2)
                await load.wait_acks(int(RATE / 4))
            _check_whole(load)
            await check_history(server, load)


async def test_a_new_process_that_dies_after_the_switch_is_replaced(tmp_path: Path) -> None:
    """What waits at the old process is decided; what came to the new one falls to the policy."""
    load = Load(4, rate=RATE / 2)
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"plugin": {"timeout": "10s"}}) as server:
            await server.plugin("install", _plugin(tmp_path, "steady"))
            async with (
                await TestClient.connect(*server.address(), "victim") as client,
                load.running(server.address()),
            ):
                held = await client.post("peer", PERSON, b"hold")
                await wait_notes(server, "steady", 1, attempt=1)
                new = (await act(server, "steady", "reload")).pid
                os.kill(new, signal.SIGKILL)
                assert (await client.sendack(held)).reason_code == SUCCESS
                await wait_state(server, "steady", "running")
                ack = await client.send("peer", PERSON, b"x")
                while ack.reason_code != SUCCESS:
                    ack = await client.send("peer", PERSON, b"x")
                back = len(load.fates)
                await load.wait_acks(int(RATE / 2))
            assert {fate.reason for fate in load.refused} <= {SYSTEM_ERROR}
            assert not [fate for fate in load.fates[back:] if fate.reason != SUCCESS]
            check_deliveries(load)
            await check_history(server, load)


@pytest.mark.slow
async def test_many_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither memory, descriptors, processes nor files of old generations are kept."""
    with trio.fail_after(LIMIT_S * 3):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", _plugin(tmp_path, "steady"))
            process = psutil.Process(server.pid)
            family = len(process.children(recursive=True))

            async def reload(times: int) -> int:
                """Return the resident bytes after that."""
                for _ in range(times):
                    await act(server, "steady", "reload")
                await until(lambda: len(process.children(recursive=True)) == family)
                rss: int = process.memory_info().rss
                return rss

            warm = await reload(WARM_RELOADS)
            descriptors, threads = process.num_fds(), process.num_threads()
            growth = await reload(MANY_RELOADS) - warm
            print(f"\n{MANY_RELOADS} reloads: RSS {growth / 1024:+.0f} KiB")
            assert growth < GROWTH_BYTES
            # The last old generation may still be taken leave of.
            await until(lambda: process.num_fds() <= descriptors)
            await until(lambda: process.num_threads() <= threads)
