"""The `receive` hook, from the durable log to a real plugin process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.integration.plugin_host.kit import Running, running, until, write_plugin
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.types import CMD_SUFFIX, Message

NOTES = """
import json
from plugin_sdk import Plugin, hook

class Notes(Plugin):
    @hook
    def receive(self, message, uids):
        with open(self.data_dir / "seen", "a") as file:
            file.write(json.dumps([message.message_id, list(uids)]) + "\\n")
"""


def store_messages(it: Running, *channels: str) -> None:
    """Make one message per channel durable."""
    first = it.store.last_log_pos() + 1
    it.store.append(
        [
            Message(
                log_pos,
                channel,
                2,
                "sender",
                "",
                b"{}",
                timestamp=1,
                message_seq=log_pos,
                log_pos=log_pos,
            )
            for log_pos, channel in enumerate(channels, first)
        ]
    )


def seen(it: Running, no: str) -> list[tuple[int, list[str]]]:
    path = it.folder / "plugins" / no / "data" / "seen"
    if not path.exists():
        return []
    return [(a, b) for a, b in map(json.loads, path.read_text().splitlines())]


async def test_only_offline_recipients_are_told_and_a_message_without_them_costs_no_call(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        it.services.members = {
            "g": ["on", "off1", "off2"],
            "all-on": ["on"],
            "g" + CMD_SUFFIX: ["off1"],
        }
        it.services.online = {"on": [OnlineDevice(0, 0, "d")]}
        source = write_plugin(tmp_path / "src", "notes", NOTES, hooks="[hooks.receive]\n")
        await it.install(source)
        store_messages(it, "all-on", "g", "g" + CMD_SUFFIX, "g")
        await it.store.sync()
        it.host.log_grew()
        await until(lambda: len(seen(it, "notes")) == 2)
        assert seen(it, "notes") == [(2, ["off1", "off2"]), (4, ["off1", "off2"])]


async def test_bound_uids_are_told_whether_connected_or_not(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.services.members = {"g": ["bot-a", "human", "bot-b"]}
        it.services.online = {"bot-a": [OnlineDevice(0, 0, "d")]}
        hooks = '[hooks.receive]\nbound = ["bot-*"]\n'
        source = write_plugin(tmp_path / "src", "notes", NOTES, hooks=hooks)
        await it.install(source)
        store_messages(it, "g")
        await it.store.sync()
        it.host.log_grew()
        await until(lambda: seen(it, "notes"))
        assert seen(it, "notes") == [(1, ["bot-a", "bot-b"])]


async def test_messages_stored_while_the_plugin_is_down_are_told_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        it.services.members = {"g": ["off"]}
        source = write_plugin(tmp_path / "src", "notes", NOTES, hooks="[hooks.receive]\n")
        status = await it.install(source)
        os.kill(status.pid, signal.SIGKILL)
        store_messages(it, "g", "g", "g")
        await it.store.sync()
        it.host.log_grew()
        await until(lambda: len(seen(it, "notes")) >= 3)
        assert sorted({message_id for message_id, _ in seen(it, "notes")}) == [1, 2, 3]
