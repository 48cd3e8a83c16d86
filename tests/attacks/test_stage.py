"""As root a plugin gets a uid of its own: in one stage where the uid reaches what it needs by
itself, else in two. Either way it is contained alike and ends with its host.

`python -m tests.attacks.test_stage FOLDER` is a host that starts a plugin and waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from wkhost.plugin_host.manifest import parse_manifest
from wkhost.plugin_host.process import LaunchSpec, Process
from wkhost.plugin_host.sandbox.ability import Ability, find_ability
from wkhost.plugin_host.sandbox.checks import Expected, check_process
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import SandboxPolicy
from wkhost.plugin_host.sandbox.reach import out_of_reach
from wkhost.plugin_host.sandbox.uids import FIRST_UID
from wkhost.plugin_host.sandbox.view import Interpreter

PYTHON = Path("/usr/bin/python3")
MANIFEST = b"""
[plugin]
no = "sleeper"
version = "1"
[run]
command = ["/bin/sleep", "1000"]
"""


def open_ability() -> Ability:
    """The machine, if wkhost ran in an interpreter that everybody reaches."""
    found = find_ability()
    if "uid" not in found.held:
        pytest.skip(found.missing["uid"])
    assert found.python is not None
    assert found.bubblewrap is not None
    tools = (PYTHON, found.bubblewrap.path, found.python.sdk)
    if not PYTHON.exists() or out_of_reach(tools, FIRST_UID) is not None:
        pytest.skip("interpreter or sources lie in a closed folder")
    python = Interpreter(PYTHON.resolve(), (), (), (), found.python.sdk)
    return msgspec.structs.replace(found, python=python)


def launch(folder: Path, ability: Ability) -> Process:
    for name in ("code", "data", "run"):
        (folder / name).mkdir()
    (folder / "code").chmod(0o755)
    spec = LaunchSpec(parse_manifest(MANIFEST), 1, folder / "code", folder / "data", folder / "run")
    return SandboxLauncher(SandboxPolicy(), folder / "plugins", ability=ability).launch(spec)


@pytest.fixture(params=["open", "closed"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wkhost-stage-") as name:
        (Path(name) / "inner").mkdir(mode=0o755)
        Path(name).chmod(0o755 if request.param == "open" else 0o700)
        yield Path(name) / "inner"


def status(pid: int) -> dict[str, str]:
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, value in lines}


def ancestors(pid: int) -> list[int]:
    """The processes between `pid` and this one, from the nearest on."""
    found: list[int] = []
    while (pid := int(status(pid)["PPid"])) != os.getpid():
        found.append(pid)
    return found


async def test_a_uid_gets_a_stage_only_where_it_needs_one(folder: Path) -> None:
    process = launch(folder, open_ability())
    try:
        with trio.fail_after(20):
            await process.release(b"")
            staged = folder.parent.stat().st_mode & 0o777 == 0o700
            *_, launcher = between = ancestors(process.pid)
            assert (status(launcher)["Uid"].split()[0] == "0") is staged
            assert len(between) == (4 if staged else 2)
            check_process(process.pid, Expected(FIRST_UID))
            assert status(process.pid)["Groups"] == ""
    finally:
        process.signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
        process.close()


async def test_it_ends_with_its_host(folder: Path) -> None:
    open_ability()
    host = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
        [sys.executable, "-m", "tests.attacks.test_stage", str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert host.stdout is not None
    with host.stdout:
        line = next(line for line in host.stdout if line.startswith(b"PLUGIN "))
        plugin = os.pidfd_open(int(line.split()[1]))
        host.kill()
        host.wait()
    try:
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(plugin)
    finally:
        os.close(plugin)


async def be_host(folder: Path) -> None:
    process = launch(folder, open_ability())
    await process.release(b"")
    print("PLUGIN", process.pid, flush=True)
    await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(be_host, Path(sys.argv[1]))
