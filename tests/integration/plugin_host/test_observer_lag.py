"""The operator's bound on how far an observing plugin may lag: nothing below it, never silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.plugin_host.kit import Running, running, until, write_plugin
from tests.integration.plugin_host.test_observers import store
from wkhost.plugin_host.observers import cursor_name
from wkhost.plugin_host.rules import Rules
from wkhost.plugin_host.session import Session

MAX_LAG = 300
WATCHER = """
import asyncio
from plugin_sdk import Plugin, hook

class Watcher(Plugin):
    @hook
    async def persist_after(self, messages):
        while (self.data_dir / "stop").exists():
            await asyncio.sleep(0.01)
        with open(self.data_dir / "seen", "a") as file:
            for m in messages:
                file.write(f"{m.message_id}\\n")
"""
OBSERVE = "[hooks.persist_after]\n"


async def install(it: Running, folder: Path) -> None:
    await it.install(write_plugin(folder / "src", "watcher", WATCHER, hooks=OBSERVE))


def data(it: Running) -> Path:
    return it.folder / "plugins" / "watcher" / "data"


async def install_with_messages_in_hand(it: Running, folder: Path) -> Session:
    """Install a plugin that stops with 10 messages in its hands; return its session."""
    await install(it, folder)
    (data(it) / "stop").touch()
    await store(it, 10)
    session: Session = it.target("watcher").session  # type: ignore[attr-defined]
    await until(lambda: session.open_calls_of("persist_after")[0])
    return session


def seen(it: Running) -> list[int]:
    path = data(it) / "seen"
    return list(map(int, path.read_text().split())) if path.exists() else []


def told(it: Running) -> dict[str, int]:
    found: dict[str, int] = it.host.statistics()["watcher"]["observers"]["persist_after"]
    return found


async def records(it: Running) -> list[dict[str, Any]]:
    """Return the details of the records of what was dropped."""
    with trio.fail_after(5):
        while True:
            found = await trio.to_thread.run_sync(it.host.auditor.log.read, 100)
            dropped = [each["details"] for each in found if each["action"] == "observer_dropped"]
            if dropped or not told(it)["dropped"]:
                return dropped
            await trio.sleep(0.01)


async def test_below_the_bound_nothing_is_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, rules=Rules(max_lag=MAX_LAG)) as it:
        await install(it, tmp_path)
        (data(it) / "stop").touch()
        await store(it, MAX_LAG)
        await until(lambda: told(it)["lag"] == MAX_LAG)
        (data(it) / "stop").unlink()
        await until(lambda: told(it)["lag"] == 0)
        assert seen(it) == list(range(1, MAX_LAG + 1))
        assert told(it)["dropped"] == 0
        assert await records(it) == []


async def test_beyond_the_bound_the_oldest_are_dropped_and_a_record_says_how_many(
    tmp_path: Path,
) -> None:
    """Those that the plugin has when it stops are in its hands; the newest `MAX_LAG` wait."""
    async with running(tmp_path, rules=Rules(max_lag=MAX_LAG)) as it:
        await install_with_messages_in_hand(it, tmp_path)
        for first in range(11, 1011, 100):
            await store(it, 100, first=first)
        (data(it) / "stop").unlink()
        await until(lambda: told(it)["lag"] == 0)
        last = 1010 - MAX_LAG
        assert seen(it) == [*range(1, 11), *range(last + 1, 1011)], "in order, none twice"
        assert told(it)["dropped"] == last - 10
        assert it.store.cursor(cursor_name("watcher", "persist_after")) == 1010
        assert await records(it) == [{"hook": "persist_after", "messages": last - 10}]
        (figures,) = (await it.host.figures()).plugins
        assert (figures.hooks[0].dropped, figures.hooks[0].lag) == (last - 10, 0)
        (line,) = [line for line in it.logs("watcher") if "dropped" in line]
        assert f"{last - 10} messages of the log were dropped" in line


async def test_what_a_dead_plugin_had_is_dropped_with_the_rest(tmp_path: Path) -> None:
    """When it comes back it gets the newest `MAX_LAG`, not first what it had when it died."""
    async with running(tmp_path, rules=Rules(max_lag=MAX_LAG)) as it:
        await install_with_messages_in_hand(it, tmp_path)
        await it.host.disable("watcher")
        await store(it, 1000, first=11)
        (data(it) / "stop").unlink()
        await it.host.enable("watcher")
        await until(lambda: told(it)["lag"] == 0)
        assert seen(it) == list(range(1011 - MAX_LAG, 1011))
        assert [each["messages"] for each in await records(it)] == [1010 - MAX_LAG]


async def test_a_plugin_that_dies_with_messages_in_hand_loses_them_beyond_the_bound(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, rules=Rules(max_lag=MAX_LAG)) as it:
        session = await install_with_messages_in_hand(it, tmp_path)
        await store(it, 1000, first=11)
        (data(it) / "stop").unlink()
        session.break_off("for this test")
        await until(lambda: told(it)["lag"] == 0)
        assert seen(it) == list(range(1011 - MAX_LAG, 1011))
        assert told(it)["dropped"] == 1010 - MAX_LAG


async def test_a_plugin_that_is_always_too_slow_makes_one_record_per_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is told when the interval, or the observer, ends."""
    monkeypatch.setattr("wkhost.plugin_host.observers.DROPS_TOLD_EVERY_S", 3600.0)
    async with running(tmp_path, rules=Rules(max_lag=5)) as it:
        await install(it, tmp_path)
        for first in range(1, 2001, 20):
            await store(it, 20, first=first)
            await trio.sleep(0.005)
        await until(lambda: told(it)["lag"] == 0)
        missing = 2000 - len(set(seen(it)))
        assert missing == told(it)["dropped"] > 0
        assert seen(it) == sorted(set(seen(it)))
        (first_record,) = await records(it)
        assert first_record["messages"] < missing, "the rest is told when the interval is over"
        await it.host.disable("watcher")
        with trio.fail_after(5):
            while len(found := await records(it)) < 2:
                await trio.lowlevel.checkpoint()
        assert sum(each["messages"] for each in found) == missing
