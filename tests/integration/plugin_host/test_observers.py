"""persist_after, receive and look-ups from a plugin's side; observers across deaths."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import trio

from tests.integration.plugin_host.kit import Running, message, running, until, write_plugin
from wkhost.hooks.target import ChannelAnswer, ChannelGetCall, UserAnswer, UserGetCall
from wkhost.hooks.verdict import Continue, Refuse
from wkhost.types import Message

WATCHER = """
import json, os
from plugin_sdk import Plugin, hook

class Watcher(Plugin):
    @hook
    def persist_after(self, messages):
        with open(self.data_dir / "seen", "a") as file:
            for m in messages:
                if m.payload == b"poison":
                    raise ValueError("cannot take this")
                file.write(f"{m.message_id} {m.message_seq}\\n")
"""
OBSERVE = "[hooks.persist_after]\npayload = true\n"


async def store(it: Running, count: int, first: int = 1, payload: bytes = b"x") -> list[Message]:
    """Make `count` messages durable and tell the host."""
    position = it.store.last_log_pos()
    rows = [
        message(
            payload,
            first + i,
            channel_id="g1",
            channel_type=2,
            message_seq=position + 1 + i,
            log_pos=position + 1 + i,
        )
        for i in range(count)
    ]
    it.store.append(rows)
    await it.store.sync()
    it.host.log_grew()
    return rows


def seen(it: Running) -> list[int]:
    """Return the ids in the order in which the plugin saw each for the first time."""
    path = it.folder / "plugins" / "watcher" / "data" / "seen"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return list(dict.fromkeys(int(line.split()[0]) for line in lines if " " in line))


def observer(it: Running) -> dict[str, int]:
    found: dict[str, int] = it.host.statistics()["watcher"]["observers"]["persist_after"]
    return found


async def test_an_observer_killed_again_and_again_sees_every_message_in_order(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "watcher", WATCHER, hooks=OBSERVE))
        ids: list[int] = []
        for round_number in range(5):
            for _ in range(10):
                rows = await store(it, 100, first=len(ids) + 1)
                ids += [m.message_id for m in rows]
                await trio.lowlevel.checkpoint()
            if round_number < 4:
                pid = it.host.info("watcher").pid
                if pid:
                    os.kill(pid, signal.SIGKILL)
                await until(lambda: it.host.info("watcher").state == "running")
        await until(lambda: len(seen(it)) == len(ids), within_s=30)
        assert seen(it) == ids
        await until(
            lambda: it.host.statistics()["watcher"]["observers"]["persist_after"]["lag"] == 0
        )


async def test_an_observer_goes_on_where_it_was_after_a_restart_of_the_host(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        await store(it, 5)
        await it.install(write_plugin(tmp_path / "src", "watcher", WATCHER, hooks=OBSERVE))
        await store(it, 5, first=6)
        await until(lambda: len(seen(it)) == 5)
        assert seen(it) == [6, 7, 8, 9, 10]
        await it.host.disable("watcher")
        await store(it, 5, first=11)
        await it.host.enable("watcher")
        await until(lambda: len(seen(it)) == 10)
        assert seen(it) == list(range(6, 16))


async def test_from_beginning_sees_what_was_there(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await store(it, 700)
        hooks = '[hooks.persist_after]\npayload = true\nfrom = "beginning"\nchannel_types = [2]\n'
        await it.install(write_plugin(tmp_path / "src", "watcher", WATCHER, hooks=hooks))
        await until(lambda: len(seen(it)) == 700)
        assert seen(it) == list(range(1, 701))


async def test_a_poison_message_is_recorded_and_skipped_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "watcher", WATCHER, hooks=OBSERVE))
        rows = [
            message(
                b"poison" if i == 4 else b"x",
                i,
                channel_id="g1",
                channel_type=2,
                message_seq=i,
                log_pos=i,
            )
            for i in range(1, 9)
        ]
        it.store.append(rows)
        await it.store.sync()
        it.host.log_grew()
        await until(lambda: set(seen(it)) == {1, 2, 3, 5, 6, 7, 8}, within_s=20)
        assert it.host.statistics()["watcher"]["observers"]["persist_after"]["skipped"] == 1
        assert any("message 4 (log_pos 4): skipped" in line for line in it.logs("watcher"))


async def test_reload_hands_observers_over_one_after_the_other(tmp_path: Path) -> None:
    code = WATCHER.replace(
        "        with open", "        import time; time.sleep(0.05)\n        with open"
    ).replace('f"{m.message_id} ', 'f"{m.message_id} {LIFE} ')
    # Every process has the same pid in a namespace of its own.
    code += "\nLIFE = os.urandom(8).hex()\n"
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "watcher", code, hooks=OBSERVE))
        ids: list[int] = []
        reloaded = trio.Event()

        async def reload() -> None:
            await it.host.reload("watcher")
            reloaded.set()

        async def go_on() -> None:
            ids.extend(m.message_id for m in await store(it, 5, first=len(ids) + 1))
            await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            await go_on()
            await until(lambda: seen(it))
            nursery.start_soon(reload)
            # A start takes as long as it takes: messages come before, during and after it.
            while not reloaded.is_set():
                await go_on()
            await go_on()
        await until(lambda: len(seen(it)) == len(ids))
        assert seen(it) == ids
        path = it.folder / "plugins" / "watcher" / "data" / "seen"
        lives = [line.split()[1] for line in path.read_text().splitlines()]
        assert len(lives) == len(ids)
        assert lives == sorted(lives, key=lives.index)
        assert len(set(lives)) == 2


LOOKUPS = """
from plugin_sdk import ChannelAnswer, Plugin, Refuse, UserAnswer, hook

class Lookups(Plugin):
    @hook
    def channel_get(self, query):
        if query.channel_id == "closed":
            return ChannelAnswer(ban=True, ttl_ms=2000)

    @hook
    def user_get(self, query):
        if query.login and query.login.token == "bad":
            return Refuse(19)
        if query.login:
            return UserAnswer(authenticated=True)

    @hook
    def receive(self, message, uids):
        (self.data_dir / "got").write_text(f"{message.payload} {list(uids)}")
"""


async def test_lookups_and_receive_reach_the_plugin(tmp_path: Path) -> None:
    hooks = "[hooks.channel_get]\n[hooks.user_get]\n[hooks.receive]\npayload = true\n"
    async with running(tmp_path) as it:
        source = write_plugin(
            tmp_path / "src", "look", LOOKUPS, hooks=hooks, extra="[capabilities]\ntoken = true\n"
        )
        await it.install(source)
        target = it.target("look")
        later = trio.current_time() + 5
        assert target.submit_channel_get(ChannelGetCall(1, "closed", 2, later))
        assert target.submit_channel_get(ChannelGetCall(2, "open", 2, later))
        assert target.submit_user_get(UserGetCall(3, "u1", 0, later, login=True, token="bad"))
        assert target.submit_user_get(UserGetCall(4, "u1", 0, later, login=True, token="good"))
        assert target.submit_user_get(UserGetCall(5, "u1", 0, later))
        assert await it.recorder.wait(1, 2, 3, 4, 5) == [
            ChannelAnswer(ban=True, ttl_s=2),
            Continue(),
            Refuse(19),
            UserAnswer(authenticated=True),
            Continue(),
        ]
        await target.receive(message(b"hi"), ["u7", "u8"])
        got = it.folder / "plugins" / "look" / "data" / "got"
        assert got.read_text() == "b'hi' ['u7', 'u8']"


async def test_payload_and_token_stay_home_unless_granted(tmp_path: Path) -> None:
    code = """
import json
from plugin_sdk import Plugin, Refuse, Replace, hook

class Curious(Plugin):
    @hook
    def send(self, message):
        return Refuse(50, json.dumps([len(message.payload), message.from_uid]))

    @hook
    def user_get(self, query):
        return Refuse(50, query.login.token or "no token")
"""
    async with running(tmp_path) as it:
        hooks = "[hooks.send]\n[hooks.user_get]\n"
        await it.install(write_plugin(tmp_path / "src", "curious", code, hooks=hooks))
        target = it.target("curious")
        (answer,) = await it.recorder.wait(it.send(target))
        assert isinstance(answer, Refuse)
        assert json.loads(answer.text) == [0, "u1"]
        call = UserGetCall(99, "u1", 0, trio.current_time() + 5, login=True, token="secret")
        assert target.submit_user_get(call)
        assert await it.recorder.wait(99) == [Refuse(50, "no token")]
