"""`python -m tests.e2e.user_flow`: from a new plugin to its logs by commands, as whoever runs this.

Prints `done` at the end; anything else is a failure that says what went wrong.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

import trio

from tests.kit.server import ServerProcess, running_server

LIMIT_S = 90


async def flow(folder: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(folder / "server", None, "--plugins", "moderation") as server:
            server.cli("plugin", "new", "hello", "--dir", str(folder))
            installed = await server.plugin("install", str(folder / "hello"))
            assert installed["state"] == "running", installed
            await _a_trial_asks_those_that_the_server_asks(server)
            reloaded = await server.plugin("reload", "hello")
            assert reloaded["pid"] not in (0, installed["pid"])
            logs = server.cli("plugin", "logs", "hello").stdout
            assert " running" in logs, logs
            assert "it has no settings" in server.cli("plugin", "config", "hello").stdout
            assert "1 is asked first" in server.cli("plugin", "order").stderr
            assert "sees no files but its own" in server.cli("plugin", "doctor").stdout
            assert (await server.plugin("versions", "hello"))["releases"][0]["version"] == "0.1.0"
            (refused, text) = await _send(server, b'{"type":1,"content":"spam"}')
            assert (refused, text) == ("refused", "no spam, please")
            assert (await _send(server, b'{"type":1,"content":"hi"}'))[0] == "stored"
            top = await server.plugin("top", "--once", "--interval", "0.1")
            assert [each["plugin"] for each in top] == ["hello", "moderation"]
            held = (await server.plugin("doctor"))["held"]
            assert {"fs", "net", "pid", "syscalls"} <= set(held), held
            assert server.trouble() == []
        trial = await server.plugin("try", "hello")
        assert [step["no"] for step in trial["steps"]] == ["hello"], "moderation was not enabled"
        assert await server.plugin("uninstall", "hello") == {"no": "hello", "uninstalled": True}


async def _a_trial_asks_those_that_the_server_asks(server: ServerProcess) -> None:
    trial = await server.plugin("try", "hello")
    assert [step["no"] for step in trial["steps"]] == ["hello", "moderation"], trial
    assert {step["outcome"] for step in trial["steps"]} == {"continue"}
    assert trial["problems"] == []


async def _send(server: ServerProcess, payload: bytes) -> tuple[str, str]:
    """Send; return the fate and the reason as `plugin why` tells them."""
    answer = await server.post(
        "/message/send",
        from_uid="alice",
        channel_id="bob",
        channel_type=1,
        payload=base64.b64encode(payload).decode(),
    )
    why = await server.plugin("why", str(answer["data"]["message_id"]))
    return why["fate"], why["reason"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="wk") as name:
        trio.run(flow, Path(name))
    print("done as", os.geteuid())
