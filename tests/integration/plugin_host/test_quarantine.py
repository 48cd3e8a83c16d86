"""Plugins that must not run any more keep their place: their policy decides, and says why."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.plugin_host.kit import Running, running, until, write_plugin
from wkhost.errors import PluginError
from wkhost.hooks.verdict import Continue, Failure, Outcome
from wkhost.plugin_host.rules import Rules

FRAGILE = """
import os
from plugin_sdk import *

print("the tables are", "gone" if os.path.exists(os.environ["HOME"] + "/bad") else "fine")

class Echo(Plugin):
    @hook
    async def start(self):
        if (self.data_dir / "bad").exists():
            raise RuntimeError("cannot read the tables")

    @hook
    def send(self, message):
        return None
"""


async def refused_by_policy(it: Running) -> None:
    (answer,) = await it.recorder.wait(it.send(it.target("echo")))
    assert isinstance(answer, Failure)
    assert answer.outcome is Outcome.CRASH


async def test_a_crash_loop_ends_in_quarantine_and_enable_lifts_it(tmp_path: Path) -> None:
    rules = Rules(crashes=4)
    bad = tmp_path / "plugins" / "echo" / "data" / "bad"
    async with running(tmp_path, rules=rules) as it:
        status = await it.install(write_plugin(tmp_path / "src", code=FRAGILE))
        bad.touch()
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: it.host.info("echo").state == "quarantined")
        status = it.host.info("echo")
        assert status.detail.startswith("died 4 times within 120 s, at last: echo: did not start")
        assert "cannot read the tables" in status.detail
        assert "RuntimeError: cannot read the tables" in status.last_lines
        assert status.restarts == 3
        await refused_by_policy(it)
        with pytest.raises(PluginError, match="quarantined: died 4 times"):
            await it.host.reload("echo")
    async with running(tmp_path, rules=rules) as it:
        await it.host.start_set(None)
        assert it.host.info("echo").state == "quarantined", "a restart of the server lifts nothing"
        assert "RuntimeError: cannot read the tables" in it.host.info("echo").last_lines
        await refused_by_policy(it)
        with pytest.raises(PluginError, match="cannot read the tables"):
            await it.host.enable("echo")
        bad.unlink()
        await until(lambda: it.host.info("echo").state == "running")
        assert it.host.info("echo").last_lines == []
        assert await it.recorder.wait(it.send(it.target("echo"))) == [Continue()]
        assert it.host.catalog.registry.get("echo").quarantine is None
        (quarantined,) = it.host.auditor.log.read(10)
        assert (quarantined["action"], quarantined["plugin"]) == ("quarantine", "echo")
        assert "cannot read the tables" in quarantined["details"]["reason"]


async def test_an_upgrade_lifts_a_quarantine(tmp_path: Path) -> None:
    async with running(tmp_path, rules=Rules(crashes=2)) as it:
        await it.install(write_plugin(tmp_path / "src", code=FRAGILE))
        (tmp_path / "plugins" / "echo" / "data" / "bad").touch()
        os.kill(it.host.info("echo").pid, signal.SIGKILL)
        await until(lambda: it.host.info("echo").state == "quarantined")
        status = await it.install(write_plugin(tmp_path / "src", version="2"))
        assert (status.state, status.detail) == ("running", "")
        assert it.host.catalog.registry.get("echo").quarantine is None
        assert await it.recorder.wait(it.send(it.target("echo"))) == [Continue()]


async def test_a_quarantined_plugin_can_be_disabled(tmp_path: Path) -> None:
    async with running(tmp_path, rules=Rules(crashes=1)) as it:
        status = await it.install(write_plugin(tmp_path / "src"))
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: it.host.info("echo").state == "quarantined")
        await it.host.disable("echo")
        assert it.chain.send == ()
        assert it.host.info("echo").state == "disabled"
        assert (await it.host.enable("echo")).state == "running"


async def test_damaged_files_are_not_run_and_their_policy_decides(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src"))
        folder = tmp_path / "plugins" / it.host.catalog.registry.get("echo").folder
    code = (folder / "main.py").read_text()
    (folder / "main.py").write_text("print('evil')\n")
    async with running(tmp_path) as it:
        await it.host.start_set(None)
        status = it.host.info("echo")
        assert status.state == "failed"
        assert "have changed since the install" in status.detail
        await refused_by_policy(it)
        with pytest.raises(PluginError, match="have changed since the install"):
            await it.host.enable("echo")
        (folder / "main.py").write_text(code)
        assert (await it.host.enable("echo")).state == "running"
        assert await it.recorder.wait(it.send(it.target("echo"))) == [Continue()]
        assert "evil" not in "\n".join(it.logs("echo"))
