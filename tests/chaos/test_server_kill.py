"""kill -9 of the server at random moments under load: nothing acknowledged is lost or doubled.

CHAOS_KILLS sets how often (5; `make chaos` 50).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
import trio

from tests.kit.load import GROUP, GROUP_ID, Load, Party, check_history
from tests.kit.plugins import info, notes, wait_notes, write_plugin
from tests.kit.server import ServerProcess
from tests.kit.until import until
from wkhost.protocol.packets import Sendack

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

KILLS = int(os.environ.get("CHAOS_KILLS", "5"))
SEED = 20_240_607
LONGEST_BEFORE_KILL = 250
"""SENDACKs between a start and the kill, at most."""
LONGEST_AFTER_ACK_S = 0.02
"""So that kills come at any moment of a batch's way, not just when its SENDACKs are read."""
SHARE_KILLED_WHILE_STARTING = 0.3
START_S = 1.5
"""What a start takes, roughly."""
RESENDS = 100
ROUND_LIMIT_S = 60

OBSERVER = """
class Seen(Plugin):
    @hook
    def persist_after(self, messages):
        for m in messages:
            note(self, id=m.message_id, seq=m.message_seq, channel=m.channel_id)
"""


async def test_what_was_acked_survives_every_kill_exactly_once(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    server = ServerProcess(tmp_path / "server")
    load = Load(4, window=8, group=True)
    folder = write_plugin(
        tmp_path, "seen", OBSERVER, stage="observe", hooks={"persist_after": {"from": "beginning"}}
    )
    server.cli("plugin", "install", str(folder))
    await server.start()
    try:
        await load.prepare(server)
        starts = []
        for _ in range(KILLS):
            with trio.fail_after(ROUND_LIMIT_S):
                async with load.running(server.address()):
                    await load.wait_acks(chance.randrange(LONGEST_BEFORE_KILL))
                    await trio.sleep(chance.uniform(0, LONGEST_AFTER_ACK_S))
                    children = psutil.Process(server.pid).children(recursive=True)
                    server.kill()
                await _gone(children)
                await _perhaps_killed_while_starting(server, chance)
                began = time.monotonic()
                await server.start()
                starts.append(time.monotonic() - began)
        with trio.fail_after(ROUND_LIMIT_S):
            async with load.running(server.address()):
                await load.wait_acks(len(load.senders))
            assert not load.refused
            await check_history(server, load)
            await _check_resends(server, load, chance)
            await _check_observed(server, load)
    finally:
        assert await server.terminate() == 0
    # What the API worker may say in the moment between the kernel's end and its own.
    assert set(server.trouble()) <= {"the kernel process has ended"}
    print(
        f"\n{KILLS} kills, {len(load.acked)} messages acked, "
        f"slowest restart {max(starts, default=0):.2f} s"
    )


async def _perhaps_killed_while_starting(server: ServerProcess, chance: random.Random) -> None:
    """Now and then the server dies again before it serves."""
    if chance.random() < SHARE_KILLED_WHILE_STARTING:
        with trio.move_on_after(chance.uniform(0, START_S)):
            await server.start()
        server.kill()


async def test_a_plugin_that_does_nothing_any_more_dies_with_its_server(tmp_path: Path) -> None:
    """Nothing in the plugin need run for it: neither its loop nor its end of the stream."""
    server = ServerProcess(tmp_path / "server")
    hooks: dict[str, dict[str, str]] = {"persist_after": {}}
    folder = write_plugin(tmp_path, "seen", OBSERVER, stage="observe", hooks=hooks)
    server.cli("plugin", "install", str(folder))
    with trio.fail_after(ROUND_LIMIT_S):
        await server.start()
        try:
            os.kill((await info(server, "seen")).pid, signal.SIGSTOP)
            children = psutil.Process(server.pid).children(recursive=True)
        finally:
            server.kill()
        await _gone(children)


async def _gone(children: list[psutil.Process]) -> None:
    """No plugin process and no API worker outlives its server."""
    assert children
    await until(lambda: not any(_lives(child) for child in children))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _check_resends(server: ServerProcess, load: Load, chance: random.Random) -> None:
    """A message sent again under its client_msg_no gets the ids of the first time."""
    clients: dict[str, Party] = {}
    for fate in chance.sample(load.acked, min(RESENDS, len(load.acked))):
        client = clients.get(fate.from_uid)
        if client is None:
            client = clients[fate.from_uid] = Party(fate.from_uid)
            await client.connect(server.address())
        await client.send([fate])
        ack: Sendack | None = None
        while ack is None:
            packets = await client.read()
            assert packets is not None
            ack = next((p for p in packets if isinstance(p, Sendack)), None)
        assert (ack.message_id, ack.message_seq) == (fate.message_id, fate.message_seq)
    for client in clients.values():
        await client.close()
    await check_history(server, load)


async def _check_observed(server: ServerProcess, load: Load) -> None:
    """persist_after has seen every message, first times in order per channel."""
    last = load.acked[-1].message_id
    await wait_notes(server, "seen", id=last)
    wanted = {fate.message_id for fate in load.acked}
    await until(lambda: wanted <= {each["id"] for each in notes(server, "seen")})
    seen: dict[str, dict[int, int]] = defaultdict(dict)
    for each in notes(server, "seen"):
        known = seen[each["channel"]]
        assert known.setdefault(each["seq"], each["id"]) == each["id"]
    for channel, known in seen.items():
        assert list(known) == list(range(1, len(known) + 1)), f"{channel}: order or a gap"
    assert (GROUP_ID in seen) == any(fate.channel_type == GROUP for fate in load.acked)
