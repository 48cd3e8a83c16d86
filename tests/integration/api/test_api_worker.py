"""The worker process and its supervisor: death, restart, draining, and never outliving us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.kit.api_server import serve_api
from tests.kit.fake_service import FakeService
from tests.kit.link_server import serve_link
from wkhost.api.supervisor import ApiWorker, ApiWorkerError
from wkhost.api.worker_settings import WorkerSettings

SEND = {"from_uid": "a", "channel_id": "g", "channel_type": 2, "payload": "aGVsbG8="}
ROOT = Path(__file__).parents[3]


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


async def test_a_killed_worker_comes_back_on_its_port_and_no_message_is_lost() -> None:
    service = FakeService()
    service.hold_sends = True
    async with (
        serve_api(service) as api,
        httpx.AsyncClient(base_url=api.base, trust_env=False, timeout=10) as client,
        trio.open_nursery() as nursery,
    ):
        lost: list[httpx.HTTPError] = []

        async def send() -> None:
            try:
                await client.post("/message/send", json={**SEND, "client_msg_no": "n"})
            except httpx.HTTPError as error:
                lost.append(error)

        nursery.start_soon(send)
        await until(lambda: len(service.held) == 1)
        first = api.worker.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(lost) == 1)
        service.hold_sends = False
        service.release()  # the kernel finishes what the dead worker had asked
        answer = await client.post("/message/send", json={**SEND, "client_msg_no": "n"})
        assert answer.json()["data"]["message_seq"] == 1
        assert api.worker.pid not in (0, first)
        assert api.worker.statistics()["restarts"] == 1


async def test_sigterm_finishes_the_requests_on_their_way() -> None:
    service = FakeService()
    service.hold_sends = True
    answers: list[httpx.Response] = []
    async with (
        serve_api(service) as api,
        httpx.AsyncClient(base_url=api.base, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            answers.append(await client.post("/message/send", json=SEND))

        nursery.start_soon(send)
        await until(lambda: len(service.held) == 1)
        process = psutil.Process(api.worker.pid)
        process.send_signal(signal.SIGTERM)
        await until(lambda: not _listens(process))
        service.release()
        await until(lambda: len(answers) == 1)
        assert answers[0].json()["data"]["message_seq"] == 1


def _listens(process: psutil.Process) -> bool:
    """False once the worker has closed its copy of the listening socket, or is gone."""
    try:
        kinds = [c.status for c in process.net_connections("tcp")]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return psutil.CONN_LISTEN in kinds


async def test_cancelling_the_supervisor_ends_the_worker() -> None:
    async with serve_api() as api:
        pid = api.worker.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert api.worker.pid == 0


async def test_a_worker_that_cannot_start_is_an_error_at_once(tmp_path: Path) -> None:
    """Nobody knows its token: the link refuses it, so it ends before it ever serves."""
    async with serve_link() as (path, _):
        with socket.create_server(("127.0.0.1", 0)) as listen:
            worker = ApiWorker(listen, WorkerSettings(str(path), "wrong", log_level=50))
            with trio.fail_after(10), pytest.raises(ApiWorkerError, match="did not start"):
                await worker.run()


ORPHAN = """
import trio
from tests.kit.api_server import serve_api

async def main():
    async with serve_api() as api:
        print(api.worker.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_worker_dies_with_the_kernel_process() -> None:
    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", ORPHAN],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                return process, int(line)
        raise AssertionError("no worker")

    process, worker = await trio.to_thread.run_sync(start)
    assert psutil.pid_exists(worker)
    process.kill()
    await trio.to_thread.run_sync(process.communicate)
    await until(lambda: not psutil.pid_exists(worker))
