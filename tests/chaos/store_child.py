"""A process that writes to a store until it is killed or has met a failing disk.

Run as `python store_child.py MODE DATA_DIRECTORY REPORT_FILE`; the tests beside it start it.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from pathlib import Path

import msgspec
import trio

from wkhost.errors import StoreBusyError, StoreError
from wkhost.store import keys
from wkhost.store.messages import MessageReader
from wkhost.store.store import Store, open_store
from wkhost.types import Message

WANTED = 400
RECOVER_TRIES = 200
FILE_LIMIT = 300_000


class Report(msgspec.Struct):
    """What the writer saw."""

    acked: list[int] = []
    """message_id of each message whose sync succeeded, in order."""
    refused: list[int] = []
    """message_id of each message whose write or sync failed."""
    errors: list[str] = []
    failed_recoveries: int = 0
    busy_reads: int = 0
    undone: int = 0


class Writer:
    """Makes batches of messages with unique ids for a few channels."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._next_id = 1_000 * (store.last_log_pos() + 1)

    def batch(self) -> list[Message]:
        seqs: dict[str, int] = {}
        found = []
        for i in range(self._random.randint(1, 6)):
            channel_id = f"c{self._random.randrange(5)}"
            seq = seqs.get(channel_id) or self._store.last_seq(channel_id, 2)
            seqs[channel_id] = seq + 1
            self._next_id += 1
            found.append(
                Message(
                    message_id=self._next_id,
                    channel_id=channel_id,
                    channel_type=2,
                    from_uid="u",
                    client_msg_no=f"n{self._next_id}",
                    payload=self._random.randbytes(600),
                    message_seq=seq + 1,
                    log_pos=self._store.last_log_pos() + 1 + i,
                )
            )
        return found


def read_all(store: MessageReader) -> list[Message]:
    """Return the whole log."""
    found: list[Message] = []
    while page := store.read_log(found[-1].log_pos if found else 0, 256):
        found += page
    return found


def check(store: Store) -> list[int]:
    """Return all message ids in commit order; every row of every message must agree."""
    log = read_all(store)
    assert [m.log_pos for m in log] == list(range(1, store.durable_log_pos + 1))
    channels = {m.channel_id for m in log}
    for channel_id in channels:
        mine = [m for m in log if m.channel_id == channel_id]
        assert [m.message_seq for m in mine] == list(range(1, len(mine) + 1))
        assert store.last_seq(channel_id, 2) == len(mine)
        assert store.read_messages(channel_id, 2, 1, 256, 256) == mine[:256]
    for m in log:
        assert store.message_by_id(m.message_id) == m
        found = store.find_client_msg_no(m.channel_id, 2, m.from_uid, m.client_msg_no)
        assert found == (m.message_id, m.message_seq)
    engine = store._engine
    for family in (keys.MESSAGE, keys.MESSAGE_ID, keys.CLIENT_MSG_NO):
        rows, start = 0, b""
        while page := engine.scan(family, start, b"\xff" * 64, 256):
            rows += len(page)
            start = keys.after(page[-1][0])
        assert rows == len(log), f"{family} has {rows} rows for {len(log)} messages"
    return [m.message_id for m in log]


async def write_forever(directory: Path) -> None:
    """Write; after each sync tell the durable ids on standard output."""
    store = await open_store(directory)
    writer = Writer(store, seed=store.last_log_pos())
    while True:
        batch = writer.batch()
        store.append(batch)
        await store.sync()
        os.write(1, b"".join(b"acked %d\n" % m.message_id for m in batch))


async def write_through_failure(mode: str, directory: Path) -> Report:
    """Write until WANTED messages are durable, recovering when the disk fails."""
    store = await open_store(directory / "data")
    writer = Writer(store, seed=1)
    report = Report()
    break_disk(mode, directory, store)
    kept: list[StoreError] = []  # a kept traceback must not keep the database open
    while store.durable_log_pos < WANTED:
        batch = writer.batch()
        ids = [m.message_id for m in batch]
        try:
            store.append(batch)
            await store.sync()
            report.acked += ids
        except StoreError as e:
            kept.append(e)
            report.refused += ids
            report.errors.append(str(e))
            await recover(mode, directory, store, report)
    report.undone = store.statistics().undone
    return report


async def fail_and_die(mode: str, directory: Path, report_file: Path) -> None:
    """Report, then end as if killed: nothing is closed."""
    report = await write_through_failure(mode, directory)
    await trio.Path(report_file).write_bytes(msgspec.json.encode(report))
    os.kill(os.getpid(), signal.SIGKILL)


async def recover(mode: str, directory: Path, store: Store, report: Report) -> None:
    for attempt in range(RECOVER_TRIES):
        try:
            await store.recover()
        except StoreError as e:
            report.failed_recoveries += 1
            report.errors.append(str(e))
            try:
                store.last_seq("c0", 2)
            except StoreBusyError:
                report.busy_reads += 1
        else:
            return
        if attempt == 0:
            heal_disk(mode, directory)
    raise SystemExit(f"no recovery: {report.errors[-1]}")


def break_disk(mode: str, directory: Path, store: Store) -> None:
    if mode == "full":
        room = os.statvfs(directory)
        filler = os.open(directory / "filler", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(filler, 0, room.f_bavail * room.f_frsize - 100_000)
        os.close(filler)
    elif mode == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT // 2, resource.RLIM_INFINITY))


def heal_disk(mode: str, directory: Path) -> None:
    if mode == "full":
        (directory / "filler").unlink()
    elif mode == "limit":
        infinity = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (infinity, infinity))


async def check_report(directory: Path, report: Report) -> None:
    """Compare what a dead writer reported with what is on disk."""
    store = await open_store(directory / "data")
    ids = check(store)
    assert ids == report.acked
    assert not set(ids) & set(report.refused)
    await store.close()


def main(mode: str, directory: Path, report_file: Path) -> None:
    if mode == "forever":
        trio.run(write_forever, directory)
    elif mode == "check":
        report = msgspec.json.decode(report_file.read_bytes(), type=Report)
        trio.run(check_report, directory, report)
    else:
        trio.run(fail_and_die, mode, directory, report_file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
