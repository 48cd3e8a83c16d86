"""Writes plugin folders for tests, and reads what the plugins noted down.

A plugin written here may call `note(self, key=value)`: one JSON line in its data directory, which
survives every death of the plugin and of the server.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import trio

from tests.kit.server import ServerProcess
from wkhost.link.client_sync import connect_operator
from wkhost.link.contract import GetPlugin, InstallPlugin, PluginAction, PluginStatus, Request
from wkhost.plugin_host.package import inspect_package

NOTES = "notes.jsonl"
_POLL_S = 0.02

_PRELUDE = f'''\
import asyncio, json, os, time
from plugin_sdk import *

def note(plugin, **fields):
    line = json.dumps(fields) + "\\n"
    with open(plugin.data_dir / "{NOTES}", "a") as notes:
        notes.write(line)

'''


def write_plugin(
    parent: Path,
    no: str,
    code: str,
    *,
    hooks: dict[str, dict[str, Any]],
    stage: str = "transform",
    priority: int = 0,
    version: str = "1.0.0",
    capabilities: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a Python plugin into `parent`/`no`-`version`; `code` is its class. Returns the folder.

    `hooks` maps each hook to its keys of the manifest.
    """
    folder = parent / f"{no}-{version}"
    folder.mkdir(parents=True)
    plugin = {"no": no, "version": version, "stage": stage, "priority": priority}
    tables: dict[str, dict[str, Any]] = {
        "plugin": plugin,
        "run": {"main": "main.py"},
        **{f"hooks.{name}": keys for name, keys in hooks.items()},
        "capabilities": capabilities or {},
        "config": config or {},
    }
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in tables.items()
    )
    (folder / "plugin.toml").write_text(text)
    (folder / "main.py").write_text(_PRELUDE + code)
    return folder


def notes(server: ServerProcess, no: str) -> list[dict[str, Any]]:
    """Return what the plugin noted so far; a line that is being written is left out."""
    path = server.root / "data" / "plugins" / no / "data" / NOTES
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


async def wait_notes(server: ServerProcess, no: str, count: int = 1, **fields: Any) -> list[Any]:
    """Wait until `count` notes have these fields; return them. The deadline is the caller's."""
    while True:
        found = [each for each in notes(server, no) if fields.items() <= each.items()]
        if len(found) >= count:
            return found
        await trio.sleep(_POLL_S)


async def ask(server: ServerProcess, request: Request) -> Any:
    """Ask the running server as the operator's commands do, without starting a command."""

    def once() -> Any:
        with connect_operator(server.root / "data" / "data") as link:
            return link.ask(request)

    return await trio.to_thread.run_sync(once)


def agreed_install(source: str, **fields: Any) -> InstallPlugin:
    """Return the request that installs a package and agrees to all that it asks for."""
    with tempfile.TemporaryDirectory() as folder:
        digest = inspect_package(source, Path(folder)).digest
    return InstallPlugin(source, **{"digest": digest, "replace_source": True, **fields})


async def act(server: ServerProcess, no: str, action: str) -> PluginStatus:
    """Do enable, disable, reload or uninstall; it must succeed."""
    answer = await ask(server, PluginAction(no, action))
    assert isinstance(answer, PluginStatus), answer
    return answer


async def info(server: ServerProcess, no: str) -> PluginStatus:
    answer = await ask(server, GetPlugin(no))
    assert isinstance(answer, PluginStatus), answer
    return answer


async def wait_state(server: ServerProcess, no: str, state: str) -> PluginStatus:
    """Wait until the plugin is in `state`. The deadline is the caller's."""
    while True:
        status = await info(server, no)
        if status.state == state:
            return status
        await trio.sleep(_POLL_S)
