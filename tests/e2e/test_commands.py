"""The commands that the README names, run as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kit.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e


def wkhost(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wkhost", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def cli_json(server: ServerProcess, *arguments: str) -> Any:
    result = await trio.to_thread.run_sync(lambda: server.cli("plugin", *arguments, "--json"))
    return json.loads(result.stdout)


def test_the_demo_plays_masked_and_refused_messages_to_the_end(tmp_path: Path) -> None:
    result = wkhost("demo", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["kind"] for event in events]
    assert kinds.count("login") == 3
    (refused,) = [event for event in events if event["kind"] == "refused"]
    assert (refused["uid"], refused["reason_code"]) == ("bob", 11)
    assert refused["text"] == "no advertising here"
    read = [event["text"] for event in events if event["kind"] == "received"]
    assert read.count("What a **** long day") == 2
    assert not any("casino" in text for text in read)
    assert events[-1]["text"].endswith("1, 2, 3")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_readable(tmp_path: Path) -> None:
    result = wkhost("demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "bob reads: Hello Bob!" in result.stdout
    assert "refused: reason 11, no advertising here" in result.stdout
    assert "Traceback" not in result.stderr


async def test_plugins_are_managed_while_the_server_runs(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        assert await cli_json(server, "list") == []
        await trio.to_thread.run_sync(
            lambda: server.cli("plugin", "new", "hello", "--dir", str(tmp_path))
        )
        status = await cli_json(server, "install", str(tmp_path / "hello"))
        assert (status["no"], status["state"]) == ("hello", "running")
        assert [each["no"] for each in (await cli_json(server, "order"))["send"]] == ["hello"]
        first_pid = status["pid"]
        reloaded = await cli_json(server, "reload", "hello")
        assert reloaded["state"] == "running"
        assert reloaded["pid"] != first_pid
        assert (await cli_json(server, "disable", "hello"))["state"] == "disabled"
        assert (await cli_json(server, "enable", "hello"))["state"] == "running"
        refused = await trio.to_thread.run_sync(
            lambda: server.cli("plugin", "info", "nobody", check=False)
        )
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
    # The same set starts again with the server.
    async with running_server(tmp_path / "server") as server:
        assert (await cli_json(server, "info", "hello"))["state"] == "running"
        await cli_json(server, "uninstall", "hello")
        assert await cli_json(server, "list") == []
