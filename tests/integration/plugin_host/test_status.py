"""What the operator is told of a plugin's state agrees with what its process is doing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from tests.integration.plugin_host.kit import running, write_plugin

DEATHS = 3


async def test_nothing_is_running_without_a_process(tmp_path: Path) -> None:
    """Looked at in every turn of the loop from a kill until the plugin serves again."""
    seen: list[tuple[str, int, str]] = []
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src"))
        for _ in range(DEATHS):
            pid = it.host.info("echo").pid
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(10):
                while (status := it.host.info("echo")).pid in (0, pid) or status.state != "running":
                    seen.append((status.state, status.pid, status.detail))
                    await trio.lowlevel.checkpoint()
        figures = (await it.host.figures()).plugins[0]
        assert (figures.state, figures.pid) == ("running", status.pid)
    assert [each for each in seen if each[0] == "running" and each[1] == 0] == []
    assert any(state == "backoff" and "SIGKILL" in detail for state, _, detail in seen)
