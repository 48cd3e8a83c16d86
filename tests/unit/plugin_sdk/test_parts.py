"""The smaller parts: the log and its rate, the pool of threads, and that the SDK stands alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import tomllib
from collections import deque
from pathlib import Path

import pytest

from plugin_sdk.failures import TRACEBACKS_PER_SECOND, FailureLog
from plugin_sdk.log import Log
from plugin_sdk.pool import BlockingPool

SDK = Path("plugin_sdk").resolve()


def test_a_log_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(part="x").bind(uid="u1")
    log.info("two\nlines", number=1, thing=object)
    log.exception("failed", ValueError("bad"))  # noqa: LOG004 - ours takes the error itself
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["level"], first["part"]) == ("two\nlines", "info", "x")
    assert (first["uid"], first["number"], first["thing"]) == ("u1", 1, "<class 'object'>")
    assert "ValueError: bad" in second["traceback"]


def test_tracebacks_are_bounded_per_second_and_hook_and_the_rest_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [10.0]
    report = FailureLog(Log(), lambda: now[0]).report
    for _ in range(TRACEBACKS_PER_SECOND + 7):
        report("send", ValueError("x"))
    report("receive", ValueError("y"))
    now[0] = 11.0
    report("send", ValueError("z"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["hook"] for line in lines].count("send") == TRACEBACKS_PER_SECOND + 1
    assert lines[-1]["not_shown_before"] == 7


def test_the_pool_runs_at_most_its_size_at_once_and_finishes_all() -> None:
    async def run() -> tuple[int, set[int], int]:
        lock = threading.Lock()
        running = [0, 0]
        barrier = threading.Barrier(3)
        finished: set[int] = set()
        over = asyncio.Event()

        def work(job: int) -> None:
            with lock:
                running[0] += 1
                running[1] = max(running)
            if job < 3:
                barrier.wait(10)  # three really run at once
            with lock:
                running[0] -= 1

        def done(jobs: deque[int]) -> None:
            finished.update(jobs)
            if len(finished) == 50:
                over.set()

        pool = BlockingPool(3, asyncio.get_running_loop(), work, done)
        for job in range(50):
            pool.submit(job)
        await asyncio.wait_for(over.wait(), 10)
        return running[1], finished, pool._threads

    most, finished, threads = asyncio.run(run())
    assert (most, threads) == (3, 3)
    assert finished == set(range(50))


def test_the_sdk_needs_only_hpack_and_protobuf() -> None:
    modules = sorted(
        ".".join(path.relative_to(SDK.parent).with_suffix("").parts)
        for path in SDK.rglob("*.py")
        if path.name != "__main__.py"
        and not path.stem.endswith("_pb2_grpc")
        and "build" not in path.parts
    )
    code = (
        "import sys, importlib\n"
        "for name in ('wkhost', 'trio', 'msgspec', 'uvloop', 'httpx', 'pluggy', 'h2', 'grpc'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SDK.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_its_own_project_file_lists_every_package() -> None:
    project = tomllib.loads((SDK / "pyproject.toml").read_text("utf-8"))
    found = {
        ".".join(path.parent.relative_to(SDK.parent).parts)
        for path in SDK.rglob("__init__.py")
        if "build" not in path.parts
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found
    root = tomllib.loads((SDK.parent / "pyproject.toml").read_text("utf-8"))
    assert set(project["project"]["dependencies"]) <= set(root["project"]["dependencies"])
