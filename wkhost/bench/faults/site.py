"""The server under fault, its plugins as the operator sees them, and its processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import trio

from wkhost.bench.errors import BenchError
from wkhost.bench.plugins import MODERATION
from wkhost.bench.server import OwnServer, Server
from wkhost.link import contract as c
from wkhost.link.client_sync import connect_operator

POLL_S = 0.005
GONE_WITHIN_S = 20.0
"""An old generation may drain, be asked to stop and be told to end, each for some seconds."""
_RUNNING_WITHIN_S = 30.0

Answer = TypeVar("Answer")


class Site:
    """One server of our own with its data; `server` is there while it runs."""

    def __init__(
        self, root: Path, plugins: Sequence[Path], settings: Mapping[str, Any] | None = None
    ) -> None:
        self._own = OwnServer(root, [str(each) for each in plugins], settings)
        self._server: Server | None = None
        self._seen: dict[int, psutil.Process] = {}

    @property
    def server(self) -> Server:
        if self._server is None:
            raise BenchError("the server does not run")
        return self._server

    @property
    def log_path(self) -> Path:
        return self._own.log_path

    async def start(self) -> None:
        self._server = await trio.to_thread.run_sync(self._own.start)

    async def stop(self) -> None:
        self.look()
        self._server = None
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._own.stop)

    def kill(self) -> None:
        """SIGKILL to the server alone."""
        self.look()
        self._server = None
        self._own.kill()

    # --- plugins --------------------------------------------------------------------------------

    async def ask(self, request: c.Request, answer: type[Answer]) -> Answer:
        """Ask as the operator does. Raises BenchError, with the server's sentence, on an error."""
        data_dir = self.server.data_dir
        assert data_dir is not None

        def once() -> c.Response:
            with connect_operator(data_dir) as link:
                return link.ask(request)

        found = await trio.to_thread.run_sync(once)
        if isinstance(found, answer):
            return found
        raise BenchError(found.text if isinstance(found, c.Error) else f"unexpected: {found}")

    async def plugin(self, no: str = MODERATION) -> c.PluginStatus:
        return await self.ask(c.GetPlugin(no), c.PluginStatus)

    async def running_plugin(self, no: str = MODERATION) -> c.PluginStatus:
        """Wait until the plugin runs. Raises BenchError when that takes too long."""
        with trio.move_on_after(_RUNNING_WITHIN_S):
            while True:
                status = await self.plugin(no)
                if status.state == "running":
                    return status
                await trio.sleep(POLL_S)
        raise BenchError(f"{no}: does not run: {status.state}, {status.detail}")

    async def outstanding(self, count: int, no: str = MODERATION) -> None:
        """Wait until the plugin's process has at least `count` calls; a second at most."""
        with trio.move_on_after(1.0):
            while True:
                statistics = await self.ask(c.GetStatistics(), c.Statistics)
                if statistics.parts["plugins"][no].get("outstanding", 0) >= count:
                    return
                await trio.sleep(POLL_S)

    async def install(self, folder: Path) -> c.PluginStatus:
        proposal = await self.ask(c.InspectPlugin(str(folder)), c.PluginProposal)
        request = c.InstallPlugin(str(folder), digest=proposal.digest, replace_source=True)
        return await self.ask(request, c.PluginStatus)

    async def reload(self, no: str = MODERATION) -> c.PluginStatus:
        return await self.ask(c.PluginAction(no, "reload"), c.PluginStatus)

    # --- processes ------------------------------------------------------------------------------

    def look(self) -> int:
        """Note the processes below the server; return how many live."""
        if self._server is None:
            return 0
        try:
            below = psutil.Process(self._server.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return 0
        self._seen.update({each.pid: each for each in below})
        return sum(_lives(each) for each in below)

    def zombies(self) -> int:
        """Return how many ended processes the running server has not reaped."""
        below = psutil.Process(self.server.pid).children(recursive=True)
        return sum(_status(each) == psutil.STATUS_ZOMBIE for each in below)

    async def settled(self, expected: int) -> int:
        """Wait a while for only `expected` processes below the server; return how many more."""
        with trio.move_on_after(GONE_WITHIN_S):
            while self.look() > expected or self.zombies():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(POLL_S)
        return max(0, self.look() - expected)

    async def gone(self) -> int:
        """After the server's end: wait a while for all its processes; return how many live."""
        with trio.move_on_after(GONE_WITHIN_S):
            while any(map(_lives, self._seen.values())):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(POLL_S)
        return sum(map(_lives, self._seen.values()))


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


def _lives(process: psutil.Process) -> bool:
    return _status(process) not in ("", psutil.STATUS_ZOMBIE)
