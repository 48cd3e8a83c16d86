"""A canary secret, crashes at ten points, then a search of everything that is left or shown.

Searched, in plain, base64 and hexadecimal: argv and environ of every process of the server, every
file below the data, plugin and runtime directories, the server's log, the plugin's log, and what
the operator's commands answer.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kit.plugins import agreed_install, ask, info, wait_state
from tests.kit.server import ServerProcess
from wkhost.link.contract import (
    Error,
    GetPluginConfig,
    GetPluginSecrets,
    PluginStatus,
    SetPluginSecret,
)

CANARIES = ("c4n4ry-first-8d1b7e", "c4n4ry-second-1f9a3c")
CODE = """
from plugin_sdk import Plugin, Refuse, hook

class Keeper(Plugin):
    @hook
    def start(self):
        self.log.info("starting", secret=self.secrets.get("key", ""), everything=repr(vars(self)))

    @hook
    def send(self, message):
        return Refuse(200, str(len(self.secrets["key"])))

    @hook
    def secrets_update(self, names):
        self.log.info("updated", names=names, secret=self.secrets["key"])
        if len(self.secrets["key"]) == 20:
            raise RuntimeError("cannot use " + self.secrets["key"])
"""
MANIFEST = """
[plugin]
no = "keeper"
version = "1.0.0"
[run]
main = "main.py"
[hooks.send]
[schema.key]
type = "text"
secret = true
"""


def forms(canary: str) -> list[bytes]:
    """Return every way in which the canary may stand somewhere, whatever stands before it."""
    raw = canary.encode()
    shifted = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), *shifted]


NEEDLES = [form for canary in CANARIES for form in forms(canary)]


def hits(data: bytes) -> list[bytes]:
    return [needle for needle in NEEDLES if needle in data]


def family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def search_processes(server: ServerProcess) -> None:
    for pid in family(server.pid):
        search_process(pid)


def search_process(pid: int) -> None:
    for name in ("cmdline", "environ"):
        try:
            data = Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            continue  # it has ended
        assert hits(data) == [], f"{name} of {pid}"


def search_files(server: ServerProcess) -> None:
    roots = [server.root]
    pointer = next(server.root.rglob("runtime"), None)
    if pointer is not None:
        roots.append(Path(pointer.read_text().strip()))
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert hits(path.read_bytes()) == [], path


async def make_server(folder: Path) -> ServerProcess:
    """Start a server that has a key, with the plugin installed."""
    key = folder / "secret.key"
    command = [sys.executable, "-m", "wkhost", "plugin", "secret", "keygen", str(key)]
    await trio.run_process(command, capture_stdout=True)
    source = folder / "source"
    source.mkdir()
    (source / "main.py").write_text(CODE)
    (source / "plugin.toml").write_text(MANIFEST)
    server = ServerProcess(folder / "server", {"plugin.secretKeyFile": str(key)})
    await server.start()
    await install(server, source)
    return server


async def install(server: ServerProcess, source: Path) -> None:
    answer = await ask(server, agreed_install(str(source)))
    assert isinstance(answer, PluginStatus), answer


async def put(server: ServerProcess, canary: str) -> None:
    answer = await ask(server, SetPluginSecret("keeper", "key", canary))
    assert not isinstance(answer, Error), answer


def start_put(server: ServerProcess, canary: str) -> subprocess.Popen[bytes]:
    """Begin to set the secret by the command, as a person does, without waiting for it."""
    command = [sys.executable, "-m", "wkhost", "--config", str(server.config)]
    setter = subprocess.Popen(
        [*command, "plugin", "secret", "set", "keeper", "key"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert setter.stdin is not None
    setter.stdin.write(canary.encode() + b"\n")
    setter.stdin.close()
    return setter


POINTS = (
    "none",
    "plugin after the first set",
    "plugin after the rotation",
    "server after the first set",
    "server after the rotation",
    "server while it is being set, at once",
    "server while it is being set, soon",
    "server while it is being set, later",
    "plugin while it is being set",
    "plugin aborts with its memory",
)


@pytest.mark.parametrize("point", POINTS)
async def test_the_canary_is_nowhere_after_a_crash(tmp_path: Path, point: str) -> None:
    server = await make_server(tmp_path)
    try:
        with trio.fail_after(180):
            await crash_at(server, point)
            search_processes(server)
            await search_answers(server)
            search_files(server)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
    search_files(server)


async def crash_at(server: ServerProcess, point: str) -> None:
    """Set and rotate the secret, with the crash in between; the plugin runs at the end."""
    if "being set" in point:
        await crash_while_setting(server, point)
        return
    await put(server, CANARIES[0])
    if "first" in point:
        await crash(server, point)
    await put(server, CANARIES[1])
    if "first" not in point and point != "none":
        await crash(server, point)
    await wait_state(server, "keeper", "running")


async def crash_while_setting(server: ServerProcess, point: str) -> None:
    await put(server, CANARIES[0])
    setter = start_put(server, CANARIES[1])
    with setter:
        search_process(setter.pid)
        # The command needs about half a second to come to its request.
        delays = {"at once": 0.0, "soon": 0.35, "later": 0.6}
        await trio.sleep(next((s for word, s in delays.items() if word in point), 0.5))
        await crash(server, point)
        assert setter.stderr is not None
        assert hits(await trio.to_thread.run_sync(setter.stderr.read)) == []
    await wait_state(server, "keeper", "running")


async def crash(server: ServerProcess, point: str) -> None:
    if point.startswith("server"):
        server.kill()
        search_files(server)
        await server.start()
        return
    pid = (await wait_state(server, "keeper", "running")).pid
    os.kill(pid, signal.SIGABRT if "aborts" in point else signal.SIGKILL)
    while (await info(server, "keeper")).pid in (0, pid):  # noqa: ASYNC110 - nobody tells us
        await trio.sleep(0.02)


async def search_answers(server: ServerProcess) -> None:
    """What the commands and the link tell, with the log of the plugin that tried to print it."""
    for request in (GetPluginConfig("keeper"), GetPluginSecrets("keeper")):
        assert hits(repr(await ask(server, request)).encode()) == []
    for arguments in (
        ("plugin", "logs", "keeper"),
        ("plugin", "config", "keeper", "--json"),
        ("plugin", "config", "keeper", "history"),
        ("plugin", "secret", "list", "keeper"),
        ("plugin", "info", "keeper"),
        ("plugin", "audit", "--json"),
    ):
        done = await trio.to_thread.run_sync(partial(server.cli, *arguments))
        assert hits((done.stdout + done.stderr).encode()) == [], arguments
        if arguments[1] == "logs":
            assert "[secret key]" in done.stdout
        if arguments[1] == "audit":
            records = [json.loads(line) for line in done.stdout.splitlines()]
            secret = [r["details"] for r in records if r["action"] == "secret"]
            assert {"key": "key", "value": "changed"} in secret
