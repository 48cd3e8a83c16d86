"""The port of the metrics: a setting of its own, and one sentence when it is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.kit.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

LIMIT_S = 60


async def test_the_port_can_be_closed(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"manager.on": False}) as server:
            assert "manager" not in server.listening
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"{server.api}/metrics")
            assert answer.status_code == httpx.codes.NOT_FOUND, "not on the business port"


async def test_a_port_that_is_taken_is_one_sentence_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = ServerProcess(tmp_path / "server", {"manager.addr": address})
        with trio.fail_after(LIMIT_S), pytest.raises(AssertionError) as caught:
            await server.start()
    assert f"manager.addr: cannot listen on {address}" in str(caught.value)
    assert "Traceback" not in str(caught.value)


async def test_a_scrape_is_answered_by_the_worker_that_came_after_a_dead_one(
    tmp_path: Path,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            url = f"http://{server.listening['manager']}/metrics"
            (worker,) = [
                child
                for child in psutil.Process(server.pid).children()
                if "wkhost.api.worker" in child.cmdline()
            ]
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                before = (await client.get(url)).text
                worker.kill()
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                after = (await client.get(url)).text
            assert "wukongim_connections_total 0.0" in before
            assert "wukongim_connections_total 0.0" in after
