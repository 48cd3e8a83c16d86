"""An observer killed again and again sees every stored message, in order per channel.

CHAOS_OBSERVED sets how many messages (4,000; `make chaos` 100,000), CHAOS_OBSERVER_KILLS how often
its plugin is killed meanwhile (6; 20).
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest
import trio

from tests.kit.plugins import info, notes, wait_state, write_plugin
from tests.kit.server import ServerProcess, running_server
from tests.kit.wkclient import TestClient
from wkhost.errors import ReasonCode

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

MESSAGES = int(os.environ.get("CHAOS_OBSERVED", "4000"))
KILLS = int(os.environ.get("CHAOS_OBSERVER_KILLS", "6"))
SENDERS = 8
WINDOW = 32
PERSON = 1
SUCCESS = int(ReasonCode.SUCCESS)
POLL_S = 0.02
SERVES_AGAIN_S = 20
"""After the last kill; the status tells of it when the server has noticed it."""

WATCHER = """
class Watcher(Plugin):
    @hook
    def persist_after(self, messages):
        note(self, seen=[(m.channel_id, m.message_seq, m.message_id) for m in messages])
"""


async def send_all(server: ServerProcess, sender: int, count: int, acked: dict[int, int]) -> None:
    """Send `count` messages with a window open; note message_id -> message_seq of each."""
    async with await TestClient.connect(*server.address(), f"s{sender}") as client:
        waiting: list[int] = []
        for number in range(count):
            waiting.append(await client.post(f"r{sender}", PERSON, b"%d" % number))
            if len(waiting) == WINDOW:
                await settle(client, waiting.pop(0), acked)
        for seq in waiting:
            await settle(client, seq, acked)


async def settle(client: TestClient, seq: int, acked: dict[int, int]) -> None:
    ack = await client.sendack(seq)
    assert ack.reason_code == SUCCESS
    acked[ack.message_id] = ack.message_seq


async def kill_now_and_then(server: ServerProcess, acked: dict[int, int]) -> None:
    """Kill the plugin whenever another share of the messages is stored."""
    last = 0
    for number in range(1, KILLS + 1):
        while len(acked) < MESSAGES * number // (KILLS + 1):  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        pid = await other_process(server, last)
        os.kill(pid, signal.SIGKILL)
        last = pid


async def other_process(server: ServerProcess, last: int) -> int:
    """Wait until the plugin runs in another process than `last`."""
    while True:
        status = await wait_state(server, "watcher", "running")
        if status.pid not in (0, last):
            return status.pid
        await trio.sleep(POLL_S)


async def test_an_observer_that_keeps_dying_misses_nothing(tmp_path: Path) -> None:
    acked: dict[int, int] = {}
    settings = {"plugin": {"crashes": 100_000, "spare": True}}
    with trio.fail_after(120 + MESSAGES / 200):
        async with running_server(tmp_path / "server", settings) as server:
            folder = write_plugin(tmp_path, "watcher", WATCHER, hooks={"persist_after": {}})
            await server.plugin("install", str(folder))
            began = time.monotonic()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_now_and_then, server, acked)
                for sender in range(SENDERS):
                    nursery.start_soon(send_all, server, sender, MESSAGES // SENDERS, acked)
            sent_s = time.monotonic() - began
            while len(seen := first_seen(server)) < len(acked):  # noqa: ASYNC110
                await trio.sleep(POLL_S * 10)
            with trio.fail_after(SERVES_AGAIN_S):
                while (  # noqa: ASYNC110 - the server tells nobody
                    await wait_state(server, "watcher", "running")
                ).restarts < KILLS:
                    await trio.sleep(POLL_S)
            assert (await info(server, "watcher")).restarts == KILLS
    assert len(acked) == MESSAGES // SENDERS * SENDERS
    assert {message_id for _, _, message_id in seen} == set(acked)
    by_channel: dict[str, list[int]] = defaultdict(list)
    for channel_id, message_seq, _ in seen:
        by_channel[channel_id].append(message_seq)
    assert len(by_channel) == SENDERS
    for seqs in by_channel.values():
        assert seqs == list(range(1, MESSAGES // SENDERS + 1)), "in order, per channel"
    total = sum(len(each.get("seen", ())) for each in notes(server, "watcher"))
    print(
        f"\n{len(acked)} messages in {sent_s:.1f} s, plugin killed {KILLS} times: all seen in "
        f"order, {total - len(acked)} seen again"
    )


def first_seen(server: ServerProcess) -> list[tuple[str, int, int]]:
    """Return (channel, seq, id) in the order in which each message was seen first."""
    found: dict[int, tuple[str, int, int]] = {}
    for each in notes(server, "watcher"):
        for channel_id, message_seq, message_id in each.get("seen", ()):
            found.setdefault(message_id, (channel_id, message_seq, message_id))
    return list(found.values())
