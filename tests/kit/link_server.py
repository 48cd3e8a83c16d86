"""A link server on a fake service in a temporary directory, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from tests.kit.fake_service import FakeService
from wkhost.link.contract import Actor
from wkhost.link.server import (
    DEFAULT_LIMITS,
    LinkLimits,
    LinkServer,
    Service,
    ignore_refusal,
    no_plugins,
)

API_TOKEN = "token-of-the-worker"


@asynccontextmanager
async def serve_link(
    service: Service | None = None,
    *,
    limits: LinkLimits = DEFAULT_LIMITS,
    is_plugin_process: Callable[[int], bool] = no_plugins,
    refused: Callable[[Actor, str], None] = ignore_refusal,
) -> AsyncIterator[tuple[Path, LinkServer]]:
    """Yield the socket's path and the server; a `FakeService` answers unless one is given."""
    with TemporaryDirectory(prefix="wkl-") as directory:
        path = Path(directory) / "link.sock"
        server = LinkServer(
            path,
            FakeService() if service is None else service,
            api_token=API_TOKEN,
            limits=limits,
            is_plugin_process=is_plugin_process,
            refused=refused,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            try:
                yield path, server
            finally:
                nursery.cancel_scope.cancel()
