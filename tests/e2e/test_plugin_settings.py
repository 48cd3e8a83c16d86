"""Settings, secrets and the audit log by the commands, with a running server and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kit.server import ServerProcess, running_server
from wkhost.link.contract import API_WORKER, OPERATOR
from wkhost.link.roles import ALLOWED

Done = subprocess.CompletedProcess[str]


async def run(server: ServerProcess, *arguments: str, value: str | None = None) -> Done:
    """Run a `wkhost plugin` command; `value` is its standard input."""
    command = [sys.executable, "-m", "wkhost", "--config", str(server.config), "plugin"]
    return await trio.to_thread.run_sync(
        partial(
            subprocess.run,
            [*command, *arguments],
            input=value or "",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )


async def good(server: ServerProcess, *arguments: str, value: str | None = None) -> str:
    done = await run(server, *arguments, value=value)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def bad(server: ServerProcess, *arguments: str, value: str | None = None) -> str:
    """Return the one sentence of a command that fails."""
    done = await run(server, *arguments, value=value)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return str(done.stderr)


async def shown(server: ServerProcess) -> Any:
    return json.loads(await good(server, "config", "moderation", "--json"))


async def records(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await good(server, "audit", "--json")).splitlines()]


async def make(folder: Path) -> ServerProcess:
    key = folder / "key"
    server = ServerProcess(folder / "server", {"plugin.secretKeyFile": str(key)})
    await good(server, "secret", "keygen", str(key))
    return server


async def change_settings(server: ServerProcess) -> None:
    """The same with and without a server: set, refuse, history, diff, undo."""
    await good(server, "config", "moderation", "set", "types=[1,2]", "plain=scan")
    config = await shown(server)
    assert (config["values"]["types"], config["values"]["plain"]) == ([1, 2], "scan")
    assert config["secrets"] == {"ai_key": False}
    assert "expected one of ignore, scan" in await bad(
        server, "config", "moderation", "set", "plain=x"
    )
    assert "is a secret" in await bad(server, "config", "moderation", "set", "ai_key=x")
    diff = await good(server, "config", "moderation", "diff")
    assert "- types: default\n+ types = [1, 2]\n" in diff
    await good(server, "config", "moderation", "undo")
    assert (await shown(server))["values"]["types"] == [1]
    history = await good(server, "config", "moderation", "history")
    assert len(history.splitlines()) == 3
    assert f"by uid {os.geteuid()}: types, plain" in history


async def test_settings_of_a_running_plugin(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        await good(server, "install", "moderation")
        await change_settings(server)
        refused = await bad(server, "config", "moderation", "set", "ai.policy=closed")
        assert "a change takes effect with a reload" in refused
        assert "--reload stores it and starts the plugin anew" in refused
        before = await server.plugin("info", "moderation")
        await good(server, "config", "moderation", "set", "ai.policy=closed", "--reload")
        after = await server.plugin("info", "moderation")
        assert after["generation"] > before["generation"]
        assert (await shown(server))["values"]["ai"] == {"url": "", "policy": "closed"}
        schema = json.loads(await good(server, "config", "moderation", "schema"))
        assert schema["properties"]["ai_key"]["writeOnly"] is True
        assert "$ref" not in json.dumps(schema)


async def test_settings_and_secrets_of_a_stopped_server(tmp_path: Path) -> None:
    server = await make(tmp_path)
    await good(server, "install", "moderation")
    await change_settings(server)
    await good(server, "secret", "set", "moderation", "ai_key", value="canary\n")
    assert (await shown(server))["secrets"] == {"ai_key": True}
    found = await records(server)
    assert [r["action"] for r in found] == [
        *("install", "configure", "configure", "configure", "configure", "secret"),
    ]
    assert all(r["details"]["server"] == "stopped" for r in found)
    await server.start()
    try:
        assert (await server.plugin("info", "moderation"))["state"] == "running"
    finally:
        assert await server.terminate() == 0


async def test_secrets_come_from_standard_input_and_are_refused_without_a_key(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path / "server") as server:
        await good(server, "install", "moderation")
        told = await bad(server, "secret", "set", "moderation", "ai_key", value="canary")
        assert "wkhost plugin secret keygen PATH" in told
    server = await make(tmp_path / "keyed")
    await server.start()
    try:
        await good(server, "install", "moderation")
        assert "not set" in await bad(
            server, "secret", "rotate", "moderation", "ai_key", value="canary"
        )
        await good(server, "secret", "set", "moderation", "ai_key", value="canary\n")
        await good(server, "secret", "rotate", "moderation", "ai_key", value="canary2\n")
        assert "ai_key: set 20" in await good(server, "secret", "list", "moderation")
        await good(server, "secret", "unset", "moderation", "ai_key")
        assert "ai_key: not set" in await good(server, "secret", "list", "moderation")
        values = [r["details"]["value"] for r in await records(server) if r["action"] == "secret"]
        assert values == ["changed", "changed", "changed", "removed"]
    finally:
        assert await server.terminate() == 0


async def test_every_change_is_recorded_with_who_asked_and_tampering_is_found(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path / "server") as server:
        for words in (
            ("install", "moderation"),
            ("disable", "moderation"),
            ("enable", "moderation"),
            ("reload", "moderation"),
            ("uninstall", "moderation"),
        ):
            await good(server, *words)
        await bad(server, "enable", "nothing")
        found = await records(server)
        actions = ["install", "disable", "enable", "reload", "uninstall", "enable"]
        assert [r["action"] for r in found] == actions
        assert {(r["role"], r["uid"]) for r in found} == {(OPERATOR, os.geteuid())}
        pids = {r["pid"] for r in found}
        assert len(pids) == len(found)
        assert server.pid not in pids
        assert "not installed" in found[-1]["details"]["failed"]
        assert "all whole" in await good(server, "audit", "--verify")
        log = next(server.root.rglob("audit.jsonl"))
        log.write_bytes(log.read_bytes().replace(b'"action":"disable"', b'"action":"enabled"'))
        assert "line 2 was changed" in await bad(server, "audit", "--verify")


@pytest.mark.parametrize(
    "name",
    [
        *("GetPluginConfig", "SetPluginConfig", "SetPluginSecret", "GetPluginSecrets"),
        *("GetPluginAudit", "InstallPlugin", "PluginAction", "GetPluginLogs"),
    ],
)
def test_an_api_worker_may_neither_change_nor_read_out_plugins(name: str) -> None:
    assert name in {request.__name__ for request in ALLOWED[OPERATOR]}
    assert name not in {request.__name__ for request in ALLOWED[API_WORKER]}
