"""Killed writers and failing disks: nothing acked is lost, nothing refused comes back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.chaos.store_child import Report, check
from tests.kit.missing import unavailable
from wkhost.store.store import Store, open_store
from wkhost.types import Message

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("store_child.py")
TIMEOUT_S = 60


def child(mode: str, *where: Path) -> list[str]:
    return [sys.executable, str(CHILD), mode, *map(str, where)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def works(*command: str) -> bool:
    """Return whether the tool is there and allowed here."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S).returncode == 0


def run_to_death(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr.decode()


def write_until_killed(data: Path, lines: int) -> list[int]:
    """Start a writer, kill it after `lines` acked messages; return what it had acked."""
    with subprocess.Popen(
        child("forever", data, data), env=environment(), stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        acked = [int(writer.stdout.readline().split()[1]) for _ in range(lines)]
        writer.kill()
        acked += [int(line.split()[1]) for line in writer.stdout if line.endswith(b"\n")]
    return acked


async def test_a_killed_writer_loses_nothing_acked_and_all_rows_agree(tmp_path: Path) -> None:
    acked: list[int] = []
    for lines in (1, 40, 150, 7):
        acked += write_until_killed(tmp_path / "data", lines)
        store = await open_store(tmp_path / "data")
        there = check(store)
        await store.close()
        assert set(acked) <= set(there)
        assert len(set(there)) == len(there)


def assert_failed_and_recovered(report: Report) -> None:
    assert report.refused
    assert not set(report.refused) & set(report.acked)
    assert len(report.acked) >= 400


def test_a_failing_fsync_refuses_its_batch_and_nothing_else(tmp_path: Path) -> None:
    if not works("strace", "-qq", "-e", "trace=none", "true"):
        unavailable("no usable strace, so fsync cannot be made to fail here")
    inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=40..43"]
    strace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), *inject]
    report_file = tmp_path / "report"
    run_to_death([*strace, *child("fsync", tmp_path, report_file)])
    report = msgspec.json.decode(report_file.read_bytes(), type=Report)
    assert_failed_and_recovered(report)
    assert "fdatasync" in report.errors[0]
    assert report.undone == len(report.refused), "the unsynced rows were there and taken back"
    assert report.failed_recoveries == report.busy_reads > 0
    done = subprocess.run(child("check", tmp_path, report_file), env=environment(), check=False)
    assert done.returncode == 0


def test_a_file_that_cannot_grow_refuses_until_it_can(tmp_path: Path) -> None:
    report_file = tmp_path / "report"
    run_to_death(child("limit", tmp_path, report_file))
    report = msgspec.json.decode(report_file.read_bytes(), type=Report)
    assert_failed_and_recovered(report)
    assert "File too large" in report.errors[0]
    done = subprocess.run(child("check", tmp_path, report_file), env=environment(), check=False)
    assert done.returncode == 0


def test_a_full_disk_refuses_until_there_is_room(tmp_path: Path) -> None:
    if not works("unshare", "-rm", "true"):
        unavailable("no user namespaces, so no small disk to fill here")
    disk, report_file = tmp_path / "disk", tmp_path / "report"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=8m none "$1" || exit 3; shift; "$@"; [ $? = 137 ] || exit 4; '
        'exec "$1" "$2" check "$4" "$5"'
    )
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk)]
    done = subprocess.run(
        [*command, *child("full", disk, report_file)],
        env=environment(),
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(report_file.read_bytes(), type=Report)
    assert_failed_and_recovered(report)
    assert "No space left" in report.errors[0]


def sent(store: Store) -> Message:
    pos = store.last_log_pos() + 1
    return Message(pos, "c0", 2, "u", f"n{pos}", b"x" * 100, message_seq=pos, log_pos=pos)


async def reopened_with_log_cut(data: Path, copy: Path, name: str, size: int) -> list[int]:
    """Return the ids in a copy of a running store whose write-ahead log ends at `size`."""
    shutil.copytree(data, copy)
    os.truncate(copy / "rocks" / name, size)
    store = await open_store(copy)
    ids = check(store)
    await store.close()
    return ids


async def test_what_sync_covered_is_in_the_log_when_it_returns(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = await open_store(data)
    try:
        (log,) = (data / "rocks").glob("*.log")
        sizes = [0]
        for _ in range(20):
            store.append([sent(store)])
            await store.sync()
            sizes.append(log.stat().st_size)
        store.append([sent(store)])
        for acked in (0, 1, 10, 20):
            copy = tmp_path / f"copy{acked}"
            ids = await reopened_with_log_cut(data, copy, log.name, sizes[acked])
            assert ids == list(range(1, acked + 1))
    finally:
        await store.close()


def test_every_ack_follows_an_fsync_that_followed_its_write(tmp_path: Path) -> None:
    if not works("strace", "-qq", "-e", "trace=none", "true"):
        unavailable("no usable strace, so the order of calls is not seen here")
    trace, data = tmp_path / "trace", tmp_path / "data"
    strace = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=write,fdatasync"]
    with subprocess.Popen(
        [*strace, *child("forever", data, data)],
        env=environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as writer:
        assert writer.stdout is not None
        for _ in range(100):
            writer.stdout.readline()
        os.killpg(writer.pid, signal.SIGKILL)
    acks, dirty, syncing = 0, False, False
    for line in trace.read_text(errors="replace").splitlines():
        if re.search(r" write\(\d+<[^>]*\.log>", line):
            dirty = True
        elif re.search(r" fdatasync\(\d+<[^>]*\.log>", line):
            syncing = "unfinished" in line
            dirty = dirty and " = 0" not in line
        elif "fdatasync resumed" in line and syncing:
            assert line.endswith("= 0")
            syncing = dirty = False
        elif " write(1<" in line and "acked" in line:
            assert not dirty, "an ack went out before its fsync ended"
            acks += 1
    assert acks > 20
