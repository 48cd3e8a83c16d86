"""A hostile plugin dials the admin link. Without a sandbox it is turned away all the same."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.plugin_host.kit import running, until
from tests.integration.plugin_host.raw import write_raw
from tests.kit.link_server import API_TOKEN, serve_link
from wkhost.link.contract import API_WORKER, Actor, InspectPlugin, InstallPlugin
from wkhost.link.roles import ALLOWED
from wkhost.plugin_host.process import PlainLauncher, descends_from

ATTACK = """
from wkhost.link.client_sync import SyncLinkClient
from wkhost.link.contract import GetHealth, InstallPlugin, OPERATOR
from pathlib import Path

def attack(who):
    for role, known in ((OPERATOR, ""), ("api", {token!r})):
        try:
            with SyncLinkClient(Path({path!r}), role=role, token=known, timeout_s=5) as link:
                print("TOLD", who, role, link.ask(InstallPlugin("moderation")), flush=True)
        except Exception as error:
            print("TOLD", who, role, type(error).__name__, error, flush=True)

attack("plugin")
if os.fork() == 0:
    attack("child")
    os._exit(0)
os.wait()
print("DONE", flush=True)
"""


async def test_a_plugin_and_its_children_are_refused_whatever_they_know(tmp_path: Path) -> None:
    server_pid = os.getpid()
    refused: list[Actor] = []

    def is_plugin_process(pid: int) -> bool:
        return pid != server_pid and descends_from(pid, server_pid)

    async with (
        serve_link(
            is_plugin_process=is_plugin_process,
            refused=lambda actor, reason: refused.append(actor),
        ) as (path, server),
        running(tmp_path, launcher=PlainLauncher()) as it,
    ):
        body = ATTACK.format(path=str(path), token=API_TOKEN)
        # The attack comes before the handshake, the plugin then serves as if nothing had been.
        source = write_raw(tmp_path / "src", "pass")
        program = Path(source) / "program.py"
        program.write_text(program.read_text().replace("stream = stub", body + "\nstream = stub"))
        status = await it.install(source)
        await until(lambda: any("DONE" in line for line in it.logs("raw")))
        told = [line.split("TOLD ")[1] for line in it.logs("raw") if "TOLD" in line]
        assert len(told) == 4
        assert all("LinkRefusedError" in line and "plugins" in line for line in told), told
        assert server.statistics()["refused_peers"] == 4
        assert status.pid in {actor.pid for actor in refused}


def test_an_api_worker_may_change_nothing_about_plugins() -> None:
    forbidden = {"InstallPlugin", "UpgradePlugin", "RollbackPlugin", "GrantPlugin", "PluginAction"}
    forbidden |= {"SetPluginConfig", "SetPluginSecret", "GetPluginSecrets", "InspectPlugin"}
    assert not forbidden & {request.__name__ for request in ALLOWED[API_WORKER]}
    assert forbidden <= {request.__name__ for request in ALLOWED["operator"]}
    assert {InspectPlugin, InstallPlugin} <= ALLOWED["operator"]
