"""Install to rollback on the command line of a running server, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.kit.plugins import agreed_install, ask, write_plugin
from tests.kit.server import running_server
from tests.kit.wkclient import TestClient
from wkhost.link.contract import Error, GetPluginAudit, PluginAudit

pytestmark = pytest.mark.e2e

PERSON = 1
FIRST, SECOND = 100, 150
"""What the versions answer, plus the bytes of content that they see."""
LIMIT_S = 90

GUARD = """
class Guard(Plugin):
    @hook
    async def send(self, message):
        return Refuse({code} + len(message.payload), "counted")
"""


def guard(folder: Path, version: str, code: int, **capabilities: object) -> str:
    hooks = {"send": {"payload": True, "policy": "closed"}}
    text = GUARD.format(code=code)
    return str(
        write_plugin(folder, "guard", text, hooks=hooks, version=version, capabilities=capabilities)
    )


async def test_from_install_to_rollback(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", guard(tmp_path, "1.0.0", FIRST))
            async with await TestClient.connect(*server.address(), "person") as client:

                async def answer() -> int:
                    return (await client.send("peer", PERSON, b"four")).reason_code

                assert await answer() == FIRST + 4
                await server.plugin("revoke", "guard", "hook.send.payload")
                assert await answer() == FIRST
                await server.plugin("grant", "guard", "hook.send.payload")
                assert await answer() == FIRST + 4

                newer = guard(tmp_path, "2.0.0", SECOND, users_read=True)
                refused = await ask(server, agreed_install(newer, granted=[]))
                assert isinstance(refused, Error)
                assert "waits for consent: users_read" in refused.text
                assert await answer() == FIRST + 4

                found = await server.plugin("versions", "guard")
                (waiting,) = [each for each in found["releases"] if each["waiting"]]
                asked = await trio.to_thread.run_sync(
                    lambda: server.cli("plugin", "upgrade", "guard", check=False)
                )
                assert asked.returncode == 1
                assert "read who exists and who is online" in asked.stdout
                upgraded = await server.plugin(
                    "upgrade", "guard", "--yes", "--digest", waiting["digest"]
                )
                assert (upgraded["version"], upgraded["state"]) == ("2.0.0", "running")
                assert await answer() == SECOND + 4

                back = await server.plugin("rollback", "guard")
                assert (back["version"], back["state"]) == ("1.0.0", "running")
                assert await answer() == FIRST + 4
            audit = await ask(server, GetPluginAudit())
            assert isinstance(audit, PluginAudit)
            actions = [each["action"] for each in audit.records if each["plugin"] == "guard"]
            # The install that waited is recorded with why it was not done; it names no plugin yet.
            assert actions == ["install", "revoke", "grant", "upgrade", "rollback"]
            failed = [each for each in audit.records if "failed" in each["details"]]
            assert ["waits for consent" in each["details"]["failed"] for each in failed] == [True]
