"""`wkhost plugin top` on a real terminal: 80 columns, keys, resizing, a server that comes back."""

from __future__ import annotations

import base64
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import TracebackType

import pytest
import trio

from tests.kit.plugins import write_plugin
from tests.kit.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

LIMIT_S = 60
POLL_S = 0.02
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CALM = """
class Calm(Plugin):
    @hook
    async def send(self, message):
        if b"spam" in message.payload:
            return Refuse(20, "no spam")
"""


class Terminal:
    """`wkhost plugin top` in a pseudo-terminal; `text` is all it wrote."""

    def __init__(self, server: ServerProcess, columns: int, lines: int, **variables: str) -> None:
        self.text = ""
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._slave)
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
        command = [sys.executable, "-m", "wkhost", "--config", str(server.config)]
        self.process = subprocess.Popen(
            [*command, "plugin", "top", "--interval", "0.2"],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environment, "TERM": "xterm-256color", **variables},
            start_new_session=True,
        )
        os.set_blocking(self._master, False)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    async def until(self, words: str, *, after: int = 0) -> int:
        """Wait until `words` stand in what came after a place; return the place behind them."""
        while (found := self._read().find(words, after)) < 0:
            assert self.process.poll() is None or self._read().find(words, after) >= 0, self.text
            await trio.sleep(POLL_S)
        return found + len(words)

    async def end(self) -> int:
        while (code := self.process.poll()) is None:
            self._read()
            await trio.sleep(POLL_S)
        self._read()
        return code

    def sane(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before

    def _read(self) -> str:
        try:
            while data := os.read(self._master, 65536):
                self.text += data.decode()
        except BlockingIOError:
            pass
        return self.text


def lines_of(text: str) -> list[str]:
    """Return the lines on the screen. One picture follows the other at the cursor's home."""
    text = text.replace("\x1b[H", "\n").replace("\r", "")
    return [line.rstrip() for line in ESCAPE.sub("", text).split("\n")]


async def test_the_picture_fits_and_q_gives_the_terminal_back(tmp_path: Path) -> None:
    hooks = {"send": {"payload": True}}
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            await server.plugin("install", str(write_plugin(tmp_path, "calm", CALM, hooks=hooks)))
            with Terminal(server, 80, 24) as terminal:
                await terminal.until("running")
                assert ENTER in terminal.text
                assert COLOUR.search(terminal.text)
                for spam in (b"hi", b"spam"):
                    await send(server, spam)
                await terminal.until("refuse 1")
                mark = len(terminal.text)
                terminal.resize(130, 40)
                await terminal.until("outcomes", after=mark)
                terminal.press(b"q")
                assert await terminal.end() == 0
                assert terminal.text.count(ENTER) == terminal.text.count(LEAVE) == 1
                assert terminal.sane()
                # The last picture stays, and it is of the wide terminal.
                last = lines_of(terminal.text[terminal.text.rindex(LEAVE) :])
                assert any(line.endswith("outcomes") and "breaker" in line for line in last)
                narrow = lines_of(terminal.text[:mark])
            names = ("calls/s", "p50 ms", "p99 ms", "at it", "queue", "lag", "breaker")
            assert any(all(name in line for name in names) for line in narrow)
            assert any(
                all(name in line for name in ("version", "state", "pid", "MiB", "dropped"))
                for line in narrow
            )
            assert max(map(len, narrow)) <= 80
            assert "…" not in "".join(narrow)


async def test_it_waits_for_a_server_that_restarts_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "server")
    hooks: dict[str, dict[str, object]] = {"send": {}}
    with trio.fail_after(LIMIT_S):
        await server.start()
        try:
            await server.plugin("install", str(write_plugin(tmp_path, "calm", CALM, hooks=hooks)))
            with Terminal(server, 80, 24, NO_COLOR="1") as terminal:
                await terminal.until("running")
                assert await server.terminate() == 0
                gone = await terminal.until("waiting for it")
                await server.start()
                await terminal.until("q ends", after=gone)
                terminal.process.send_signal(signal.SIGINT)
                assert await terminal.end() == 0
                assert terminal.sane()
                assert not COLOUR.search(terminal.text)
        finally:
            with trio.CancelScope(shield=True):
                await server.terminate()


async def send(server: ServerProcess, payload: bytes) -> None:
    await server.post(
        "/message/send",
        from_uid="alice",
        channel_id="bob",
        channel_type=1,
        payload=base64.b64encode(payload).decode(),
    )
