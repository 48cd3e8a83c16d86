"""An API worker process on a fake service, for tests."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from queue import SimpleQueue
from threading import Thread

import trio

from tests.kit.fake_service import FakeService
from tests.kit.link_server import API_TOKEN, serve_link
from wkhost.api.supervisor import ApiWorker
from wkhost.api.worker_settings import WorkerSettings
from wkhost.link.server import Service


class ServedApi:
    """A running worker: its base URL and its supervisor."""

    def __init__(self, worker: ApiWorker) -> None:
        self.worker = worker
        self.base = f"http://127.0.0.1:{worker.port}"


@asynccontextmanager
async def serve_api(
    service: Service | None = None,
    *,
    manager_token: str = "",
    mode: str = "debug",
    max_body_bytes: int = 4 * 1024 * 1024,
    answer_timeout_s: float = 10.0,
) -> AsyncIterator[ServedApi]:
    """Yield a served API; a `FakeService` answers unless one is given."""
    async with serve_link(FakeService() if service is None else service) as (path, _):
        with socket.create_server(("127.0.0.1", 0)) as listen:
            settings = WorkerSettings(
                link_path=str(path),
                link_token=API_TOKEN,
                manager_token=manager_token,
                mode=mode,
                max_body_bytes=max_body_bytes,
                answer_timeout_s=answer_timeout_s,
                drain_s=2,
                log_level=logging.WARNING,
            )
            worker = ApiWorker(listen, settings)
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                try:
                    yield ServedApi(worker)
                finally:
                    nursery.cancel_scope.cancel()


@contextmanager
def serve_api_in_thread(service: Service, *, max_body_bytes: int) -> Iterator[ServedApi]:
    """Like `serve_api`, for several tests: the server lives in a thread of its own.

    The service must answer by itself: its `done` may not be called from another thread.
    """
    started: SimpleQueue[tuple[ServedApi, trio.lowlevel.TrioToken, trio.Event] | Exception]
    started = SimpleQueue()

    async def main() -> None:
        stop = trio.Event()
        try:
            async with serve_api(service, max_body_bytes=max_body_bytes) as served:
                started.put((served, trio.lowlevel.current_trio_token(), stop))
                await stop.wait()
        except Exception as error:
            started.put(error)
            raise

    thread = Thread(target=trio.run, args=(main,))
    thread.start()
    outcome = started.get()
    if isinstance(outcome, Exception):
        raise outcome
    served, token, stop = outcome
    yield served
    token.run_sync_soon(stop.set)
    thread.join()
