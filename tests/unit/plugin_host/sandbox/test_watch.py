"""Limits that the host looks at, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.tree import Tree
from wkhost.plugin_host.sandbox.watch import Watch

LIMIT_MB = 200
LOOKS = 400
MANY = 10**9
"""Files: the root folder of these processes is the machine's."""
SHARING = """
import os, signal
held = bytearray(b"x") * (60 << 20)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for _ in range(3):
    if os.fork() == 0:
        break
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
for at in range(0, len(held), 4096):
    held[at] = 1
signal.pause()
"""
"""Four processes of 60 MiB that are the same memory until each is told to write to it."""


@pytest.fixture
def sharing() -> Iterator[int]:
    """The pid of a process whose child and grandchildren do."""
    first = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", first, SHARING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            for _ in range(4):
                assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


async def test_memory_that_processes_share_counts_once(sharing: int, tmp_path: Path) -> None:
    watch = Watch(Limits(memory_mb=LIMIT_MB, data_files=MANY), tmp_path, grouped=False)
    pids = Tree(sharing).pids()
    assert not await watch.exceeded(pids), watch.reason
    assert not await watch.exceeded(pids)
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    for _ in range(LOOKS):
        if await watch.exceeded(pids):
            break
        await trio.sleep(0.05)
    assert f"MiB of memory are in use, its limit is {LIMIT_MB}" in watch.reason


async def test_memory_is_not_looked_at_where_a_group_limits_it(
    sharing: int, tmp_path: Path
) -> None:
    watch = Watch(Limits(memory_mb=16, data_files=MANY), tmp_path, grouped=True)
    assert not await watch.exceeded(Tree(sharing).pids())
