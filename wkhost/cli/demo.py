"""`wkhost demo`: a throw-away server on free ports, three clients, and a readable transcript."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from wkhost.cli.demo_script import MODERATION_CONFIG, Event, play
from wkhost.cli.session import CommandError, Session, json_option, pass_session
from wkhost.config.values import parse_address
from wkhost.link.contract import InstallPlugin
from wkhost.plugin_host.catalog import Catalog

START_TIMEOUT_S = 60.0
PLAY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_LOG_LINES = 5
_CONFIG = """\
addr: tcp://127.0.0.1:0
wsAddr: ws://127.0.0.1:0
httpAddr: 127.0.0.1:0
manager.on: false
rootDir: {root}
"""


@click.command()
@json_option
@pass_session
def demo(session: Session, as_json: bool) -> None:
    """Show a throw-away server with three clients chatting through moderation.

    It listens on free ports of this machine, keeps its data in a temporary folder and touches
    nothing else; --config does not concern it.
    """

    def tell(event: Event) -> None:
        if as_json:
            session.json(event)
        else:
            session.line(*rendered(event))

    with tempfile.TemporaryDirectory(prefix="wkhost-demo-") as folder:
        root = Path(folder)
        with session.err.status("starting a throw-away server with the moderation plugin ..."):
            catalog = Catalog(root / "plugins")
            catalog.install(InstallPlugin("moderation"))
            catalog.registry.change("moderation", config=MODERATION_CONFIG)
            server = _start(root)
        with _stopped_at_the_end(server):
            listening = _wait_ready(server, root)
            if not as_json:
                session.line(f"a server on {listening['tcp']} and http://{listening['http']}")
                session.line("moderation masks the word darn and refuses the word casino\n")
            tcp = parse_address(listening["tcp"], "tcp")
            play(
                (tcp.host, tcp.port), f"http://{listening['http']}", tell, timeout_s=PLAY_TIMEOUT_S
            )
    if not as_json:
        session.line("\nthe server is stopped and its data removed; start a real one: wkhost run")


def rendered(event: Event) -> tuple[str, str]:
    """Return one line of the transcript and its style."""
    match event.kind:
        case "login":
            return f"{event.uid:<6} logs in ({event.text})", "dim"
        case "api":
            return f"\n{'api':<6} {event.text}", "cyan"
        case "sent":
            said = f"\n{event.uid:<6} to {event.to}: {event.text}"
            if event.message_seq:
                said += f"    (message {event.message_seq}, on disk after {event.ack_ms} ms)"
            return said, "bold"
        case "received":
            return f"{'':<6}   {event.uid} reads: {event.text}", "green"
        case "refused":
            why = f", {event.text}" if event.text else ""
            return f"{'':<6}   refused: reason {event.reason_code}{why}", "red"
        case _:
            return f"\n{event.uid:<6} reads the history of {event.to}\n       {event.text}", "cyan"


def _start(root: Path) -> subprocess.Popen[bytes]:
    config = root / "wk.yaml"
    config.write_text(_CONFIG.format(root=json.dumps(str(root))), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WK_")}
    with (root / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "wkhost", "--config", str(config), "run", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environ,
        )


def _wait_ready(server: subprocess.Popen[bytes], root: Path) -> dict[str, str]:
    """Return the addresses from the server's ready line. Raises CommandError."""
    stdout = server.stdout
    assert stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stdout], [], [], left)[0]:
            raise CommandError(f"the server was not ready within {START_TIMEOUT_S:g} s")
        chunk = os.read(stdout.fileno(), 4096)
        if not chunk:
            raise CommandError(f"the server ended before it was ready: {_last_words(root)}")
        line += chunk
    listening: dict[str, str] = json.loads(line)["listening"]
    return listening


def _last_words(root: Path) -> str:
    lines = (root / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(lines[-_LOG_LINES:]) or "it said nothing"


@contextmanager
def _stopped_at_the_end(server: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stdout is not None:
            server.stdout.close()
