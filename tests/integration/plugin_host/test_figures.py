"""Figures, health and breakers of real plugin processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from tests.integration.plugin_host.kit import Running, opened, running, until, write_plugin
from wkhost.hooks.target import Answer
from wkhost.hooks.verdict import Continue, Failure, Outcome, Refuse
from wkhost.link.contract import HookFigures, PluginFigures

SLOW = """
import asyncio
from plugin_sdk import Plugin, Veto, hook

class Slow(Plugin):
    @hook
    async def send(self, message):
        if message.payload == b"hang":
            await asyncio.sleep(1)
    @hook
    def persist_after(self, messages):
        pass
    @hook
    def health(self):
        return Veto("not today") if (self.data_dir / "ill").exists() else None
"""
HOOKS = "[hooks.send]\npayload = true\n[hooks.persist_after]\n"


async def figures(it: Running) -> tuple[PluginFigures, dict[str, HookFigures]]:
    (plugin,) = (await it.host.figures()).plugins
    return plugin, {hook.hook: hook for hook in plugin.hooks}


async def health(it: Running, no: str) -> Answer:
    found: list[Answer] = []
    assert it.target(no).check_health(5.0, found.append)
    await until(lambda: found)
    return found[0]


async def test_figures_tell_the_process_its_queue_and_what_it_observes(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "slow", SLOW, hooks=HOOKS))
        target = it.target("slow")
        calls = [it.send(target, b"hang") for _ in range(3)]
        await until(opened(target, calls))
        plugin, hooks = await figures(it)
        assert (plugin.no, plugin.state, plugin.restarts) == ("slow", "running", 0)
        assert plugin.pid > 0
        assert plugin.rss_bytes > 5 * 1024 * 1024
        assert plugin.log_lines > 0
        assert set(hooks) == {"send", "persist_after"}
        assert (hooks["send"].in_flight, hooks["send"].queued) == (3, 0)
        assert hooks["send"].breaker == "closed"
        assert (hooks["send"].lag, hooks["persist_after"].lag) == (None, 0)


async def test_health_is_asked_of_the_process_and_its_death_is_an_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "slow", SLOW, hooks=HOOKS))
        assert isinstance(await health(it, "slow"), Continue)
        data = tmp_path / "plugins" / "slow" / "data"
        (data / "ill").touch()
        assert isinstance(await health(it, "slow"), Refuse)
        plugin, _ = await figures(it)
        os.kill(plugin.pid, signal.SIGSTOP)
        found: list[Answer] = []
        assert it.target("slow").check_health(5.0, found.append)
        os.kill(plugin.pid, signal.SIGKILL)
        await until(lambda: found)
        assert isinstance(found[0], Failure)
        assert found[0].outcome is Outcome.CRASH


async def test_each_generation_has_lines_of_its_own_and_counts_go_on(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "slow", SLOW, hooks=HOOKS))
        target = it.target("slow")
        first = target.lines["send"]
        for n in range(5):
            first.failed(0, Outcome.TIMEOUT, 100.0 + n / 10)
        assert not first.breaker.closed
        first.record.continued += 7
        plugin, _ = await figures(it)
        os.kill(plugin.pid, signal.SIGKILL)
        await until(lambda: target.lines["send"] is not first and target.ready)
        second = target.lines["send"]
        assert second.generation == first.generation + 1
        assert second.breaker.closed
        assert second.record is first.record
        plugin, hooks = await figures(it)
        assert plugin.restarts == 1
        assert hooks["send"].outcomes["continue"] == 7
        assert (hooks["send"].breaker, hooks["send"].breaker_opened) == ("closed", 1)
        assert it.host.info("slow").breakers["send"] == "closed"


async def test_an_uninstalled_plugin_leaves_no_numbers(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "slow", SLOW, hooks=HOOKS))
        it.target("slow").lines["send"].record.continued += 1
        assert it.host.records.counts("slow") == {"send": {"continue": 1}}
        with trio.fail_after(10):
            await it.host.uninstall("slow")
        assert it.host.records.counts("slow") == {}
        assert (await it.host.figures()).plugins == []
