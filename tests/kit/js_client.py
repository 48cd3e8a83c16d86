"""One chat user with the real JS SDK, as a Node process that speaks JSON lines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.kit.node_js import NODE, packages

PROGRAMS = Path(__file__).parents[1] / "e2e" / "js"
CONNECTED = 1
CONNECT_FAIL = 3
KICKED = 4

Event = dict[str, Any]


class JsClient:
    """Commands in, events out; see e2e/js/client.mjs for both."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._changed = trio.Event()
        self.events: list[Event] = []
        """All so far, oldest first; `next` marks those that it returned with "taken"."""

    @classmethod
    @asynccontextmanager
    async def running(cls, log: Path) -> AsyncIterator[JsClient]:
        """Run a client for the time of the block; what the SDK prints goes to `log`."""
        modules = await trio.to_thread.run_sync(packages, PROGRAMS)
        with log.open("ab") as errors:
            process = await trio.lowlevel.open_process(
                [NODE, str(PROGRAMS / "client.mjs"), str(modules)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        client = cls(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._read)
            try:
                yield client
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        rest = b""
        async for chunk in stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.events += map(json.loads, lines)
            self._changed.set()
            self._changed = trio.Event()

    async def do(self, what: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        line = json.dumps({"do": what, **arguments}) + "\n"
        await self._process.stdin.send_all(line.encode())

    async def next(self, event: str, wanted: Callable[[Event], bool] = lambda _: True) -> Event:
        """Wait for the first event of that kind that was not taken yet; the caller sets a limit."""
        seen = 0
        while True:
            for each in self.events[seen:]:
                if each["event"] == event and "taken" not in each and wanted(each):
                    each["taken"] = True
                    return each
            seen = len(self.events)
            await self._changed.wait()

    def all(self, event: str) -> list[Event]:
        return [each for each in self.events if each["event"] == event]

    async def connect(self, uid: str, address: tuple[str, int], token: str = "") -> Event:
        """Log in; the first status that tells of success or refusal."""
        await self.do("connect", uid=uid, token=token, addr=f"ws://{address[0]}:{address[1]}")
        return await self.next("status", lambda each: each["status"] in (CONNECTED, CONNECT_FAIL))

    async def connected(self) -> None:
        """Wait until the SDK is connected (again)."""
        await self.next("status", lambda each: each["status"] == CONNECTED)

    async def post(self, to: str, text: str, channel_type: int = 1) -> Event:
        """Send a text message without waiting for its answer."""
        content = {"type": 1, "content": text}
        await self.do("send", to=to, type=channel_type, content=content)
        return await self.next("sending")

    async def send(self, to: str, text: str, channel_type: int = 1) -> Event:
        """Send a text message; the SENDACK as the SDK shows it."""
        return await self.sendack(await self.post(to, text, channel_type))

    async def sendack(self, sending: Event) -> Event:
        return await self.next(
            "sendack", lambda each: bool(each["clientSeq"] == sending["clientSeq"])
        )

    async def comes_back(self) -> bool:
        """Will the SDK connect again by itself?"""
        await self.do("state")
        return bool((await self.next("state"))["comesBack"])

    async def message(self) -> Event:
        return await self.next("message")
