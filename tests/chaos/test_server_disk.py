"""A whole server on a failing disk: acknowledged means synced, and a refusal means not stored."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from struct import pack

import pytest
import trio

from tests.kit.load import Fate, Load, check_deliveries, check_history
from tests.kit.missing import unavailable
from tests.kit.server import ServerProcess, running_server
from tests.kit.until import until
from wkhost.errors import ReasonCode

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

LIMIT_S = 60
DISK_MB = 64
TRACED_ACKS = 300
SYSTEM_ERROR = int(ReasonCode.SYSTEM_ERROR)
SYNCS = "fdatasync,fsync,sync_file_range"
WRITES = "write,writev,pwrite64,sendto,sendmsg"


@asynccontextmanager
async def strace(server: ServerProcess, trace: Path, *arguments: str) -> AsyncIterator[None]:
    """Trace the running server for the time of the block; skips the test where that cannot be."""
    if shutil.which("strace") is None:
        unavailable("no strace, so the order of system calls is not seen here")
    with _attach(server.pid, trace, arguments) as tracer:
        assert tracer.stderr is not None
        first = await trio.to_thread.run_sync(tracer.stderr.readline)
        if b"attached" not in first:
            tracer.kill()
            unavailable(f"strace may not attach here: {first.decode().strip()}")
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(tracer.communicate)


def _attach(pid: int, trace: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = ["strace", "-f", "-y", "-o", str(trace), "-p", str(pid), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


class Trace:
    """What strace wrote, as places (line numbers) of beginnings and ends."""

    def __init__(self, text: str) -> None:
        self.wal_writes: list[tuple[int, str]] = []
        """(end, bytes in hexadecimal) of each write to a write-ahead log."""
        self.syncs: list[tuple[int, int]] = []
        """(begin, end) of each successful fdatasync of a write-ahead log."""
        self.socket_writes: list[tuple[int, str]] = []
        """(begin, bytes in hexadecimal) of each write to a TCP socket."""
        self._unfinished: dict[str, tuple[int, str]] = {}
        for place, line in enumerate(text.splitlines()):
            thread, _, call = line.partition(" ")
            self._take(place, thread, call.strip())

    def _take(self, place: int, thread: str, call: str) -> None:
        begin = place
        if call.endswith("<unfinished ...>"):
            self._unfinished[thread] = place, call
            self._note_begin(place, call)
            return
        if call.startswith("<... "):
            if thread not in self._unfinished:
                return  # it began before the tracer came
            begin, start = self._unfinished.pop(thread)
            call = start + call
        else:
            self._note_begin(place, call)
        name, file = _name_and_file(call)
        if not file.endswith(".log"):
            return
        if name in ("fsync", "fdatasync") and call.endswith(" = 0"):
            self.syncs.append((begin, place))
        elif name in ("write", "writev", "pwrite64"):
            self.wal_writes.append((place, _hex(call)))

    def _note_begin(self, place: int, call: str) -> None:
        if _name_and_file(call)[1].startswith(("socket:", "TCP")):
            self.socket_writes.append((place, _hex(call)))

    def synced_before(self, row: str, place: int) -> bool:
        """Whether the row was written, and then a sync began and ended, before `place`."""
        written = [end for end, data in self.wal_writes if row in data]
        return bool(written) and any(
            written[0] < begin and end < place for begin, end in self.syncs
        )


def _name_and_file(call: str) -> tuple[str, str]:
    """Return what is called, and on what; strace writes the name in hexadecimal too."""
    found = re.match(r"(\w+)\(\d+<([^>]*)>", call)
    if found is None:
        return "", ""
    return found[1], bytes.fromhex(_hex(found[2])).decode()


def _hex(call: str) -> str:
    return "".join(re.findall(r"\\x([0-9a-f]{2})", call))


async def test_every_sendack_and_delivery_follows_the_fsync_of_its_row(tmp_path: Path) -> None:
    load = Load(8, window=4)
    trace = tmp_path / "trace"
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            arguments = ["-xx", "-s", "1000000", "-e", f"trace={SYNCS},{WRITES}"]
            async with strace(server, trace, *arguments), load.running(server.address()):
                await load.wait_acks(TRACED_ACKS)
            await check_history(server, load)
    found = Trace(trace.read_text())
    seen = 0
    for fate in load.acked:
        number = pack(">Q", fate.message_id).hex()
        places = [place for place, data in found.socket_writes if number in data]
        assert len(places) >= 2, "its SENDACK and its RECV are in the trace"
        row = fate.client_msg_no.encode().hex()
        for place in places:
            assert found.synced_before(row, place), f"{fate} was told before it was durable"
            seen += 1
    assert load.acked
    print(f"\n{len(load.acked)} messages, {seen} writes after {len(found.syncs)} fsyncs")


async def test_a_failing_fsync_gives_15_and_the_server_goes_on_after_it(tmp_path: Path) -> None:
    load = Load(4, window=4)
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            async with load.running(server.address()):
                await load.wait_acks(100)
                inject = ["-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:error=EIO"]
                async with strace(server, tmp_path / "trace", *inject):
                    await _reasons(load, SYSTEM_ERROR)
                await _reasons(load, 1)
            await _check_told_the_truth(server, load)


async def test_a_full_disk_gives_15_and_the_server_goes_on_with_room(tmp_path: Path) -> None:
    if not _works("unshare", "-rm", "true"):
        unavailable("no user namespaces, so no small disk to fill here")
    server = SmallDiskServer(tmp_path / "server")
    load = Load(4, window=4, payload=b"x" * 4096)
    with trio.fail_after(LIMIT_S):
        await server.start()
        try:
            filler = server.disk / "filler"
            async with load.running(server.address()):
                for _ in range(2):
                    await load.wait_acks(50)
                    _fill(filler)
                    await _reasons(load, SYSTEM_ERROR)
                    filler.unlink()
                    await _reasons(load, 1)
            await _check_told_the_truth(server, load)
        finally:
            with trio.CancelScope(shield=True):
                assert await server.terminate() == 0


class SmallDiskServer(ServerProcess):
    """A server whose root directory is a small disk that only it (and /proc) sees."""

    @property
    def disk(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self.root / 'data'}")

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        folder = self.root / "data"
        folder.mkdir(exist_ok=True)
        mount = f'mount -t tmpfs -o size={DISK_MB}m none "$1" && shift && exec "$@"'
        command = [sys.executable, "-m", "wkhost", "--config", str(self.config), "run", "--json"]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                ["unshare", "-rm", "sh", "-c", mount, "sh", str(folder), *command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=LIMIT_S).returncode == 0


def _fill(filler: Path) -> None:
    """Leave a little room, so that the log fails in the middle of its work."""
    with filler.open("wb") as file:
        while True:
            room = os.statvfs(filler.parent)
            try:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 64 * 1024)
            except OSError as error:
                # The server has written meanwhile: look again.
                if error.errno != errno.ENOSPC:
                    raise
            else:
                return


async def _reasons(load: Load, reason: int, count: int = 20) -> None:
    """Wait until so many further messages were answered with `reason`."""
    start = len(load.fates)

    def answered() -> list[Fate]:
        return [fate for fate in load.fates[start:] if fate.reason == reason]

    await until(lambda: len(answered()) >= count)


async def _check_told_the_truth(server: ServerProcess, load: Load) -> None:
    """Refusals say 15 and nothing else, and what was refused is neither stored nor delivered."""
    assert {fate.reason for fate in load.refused} == {SYSTEM_ERROR}
    check_deliveries(load)
    await check_history(server, load)
    print(f"\n{len(load.acked)} acked, {len(load.refused)} refused with 15")
