"""A change of settings whose server is killed in the middle holds whole or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kit.plugins import act, agreed_install, ask, notes, wait_notes, wait_state, write_plugin
from tests.kit.server import ServerProcess
from wkhost.link.client_sync import connect_operator
from wkhost.link.contract import (
    GetPluginConfig,
    PluginConfig,
    PluginStatus,
    SetPluginConfig,
)
from wkhost.link.errors import LinkLostError, NoServerError

CODE = """
class Slow(Plugin):
    @hook
    def start(self):
        note(self, started=self.config["level"])

    @hook
    def send(self, message):
        return Refuse(100 + self.config["level"], "level")

    @hook(blocking=True)
    def config_update(self, config):
        note(self, asked=config["level"])
        time.sleep(config["slow_s"])
"""


async def server_with_plugin(folder: Path) -> ServerProcess:
    server = ServerProcess(folder / "server")
    await server.start()
    source = write_plugin(
        folder, "slow", CODE, hooks={"send": {}}, config={"level": 1, "slow_s": 0.0}
    )
    answer = await ask(server, agreed_install(str(source)))
    assert isinstance(answer, PluginStatus), answer
    return server


async def config(server: ServerProcess) -> PluginConfig:
    answer = await ask(server, GetPluginConfig("slow"))
    assert isinstance(answer, PluginConfig), answer
    return answer


def change(server: ServerProcess, **values: object) -> bool:
    """Ask for a change; False when the server died over it."""
    try:
        with connect_operator(server.root / "data" / "data") as link:
            answer = link.ask(SetPluginConfig("slow", dict(values)))
    except (LinkLostError, NoServerError, OSError):
        return False
    assert isinstance(answer, PluginConfig), answer
    return True


async def test_killed_between_prepare_and_commit_the_old_settings_hold(tmp_path: Path) -> None:
    server = await server_with_plugin(tmp_path)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    trio.to_thread.run_sync, lambda: change(server, level=5, slow_s=3.0)
                )
                await wait_notes(server, "slow", asked=5)
                server.kill()
            await server.start()
            await wait_state(server, "slow", "running")
            found = await config(server)
            assert (found.number, found.values["level"]) == (1, 1)
            assert [each["started"] for each in notes(server, "slow") if "started" in each] == [
                1,
                1,
            ]
    finally:
        server.kill()


@pytest.mark.parametrize("seed", range(6))
async def test_killed_anywhere_the_change_is_whole(tmp_path: Path, seed: int) -> None:
    """What was answered holds; what was not holds as before or as asked for, nothing else."""
    server = await server_with_plugin(tmp_path)
    answered: list[int] = []
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def keep_changing() -> None:
                    for level in range(2, 1000):
                        ask_once = partial(change, server, level=level)
                        if not await trio.to_thread.run_sync(ask_once):
                            return
                        answered.append(level)

                nursery.start_soon(keep_changing)
                await wait_notes(server, "slow", asked=3 + seed)
                await trio.sleep(0.001 * seed)
                server.kill()
            await server.start()
            await wait_state(server, "slow", "running")
            found = await config(server)
            last = answered[-1] if answered else 1
            assert found.values["level"] in (last, last + 1)
            assert found.history[-1].overrides == {"level": found.values["level"]}
            started = [each["started"] for each in notes(server, "slow") if "started" in each]
            assert started[-1] == found.values["level"]
            assert (await act(server, "slow", "reload")).state == "running"
    finally:
        server.kill()
