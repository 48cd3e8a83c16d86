"""Opening a data directory: who has it, which version wrote it, what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio

from wkhost.errors import DataDirectoryError, StoreBusyError, StoreError
from wkhost.store import keys, mutations, schema
from wkhost.store.engine import Engine, Row
from wkhost.store.lock import DirectoryLock
from wkhost.store.memory import MemoryEngine
from wkhost.store.options import StoreOptions
from wkhost.store.store import Store, open_store
from wkhost.types import Message

SMALL = StoreOptions(
    mem_table_bytes=64 * 1024,
    block_cache_bytes=256 * 1024,
    write_buffer_bytes=128 * 1024,
    max_open_files=32,
)


def stored(pos: int) -> Message:
    return Message(pos, f"c{pos % 7}", 2, "u", f"n{pos}", b"x" * 200, message_seq=pos, log_pos=pos)


async def append_patiently(store: Store, messages: Sequence[Message]) -> None:
    """Append, and try again while the disk is behind, as the kernel does."""
    while True:
        try:
            store.append(messages)
        except StoreBusyError:
            await trio.sleep(0.001)
        else:
            return


async def test_what_was_synced_is_there_after_close_and_open(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "deep" / "data")
    store.append([stored(1), stored(2)], mutations.put_user("u"))
    await store.sync()
    await store.close()
    again = await open_store(tmp_path / "deep" / "data")
    assert again.read_log(0, 9) == [stored(1), stored(2)]
    assert again.last_log_pos() == again.durable_log_pos == 2
    assert again.user_exists("u")
    await again.close()


async def test_small_buffers_spill_to_tables_and_stay_correct(tmp_path: Path) -> None:
    store = await open_store(tmp_path, options=SMALL)
    for first in range(1, 4001, 100):
        await append_patiently(store, [stored(pos) for pos in range(first, first + 100)])
        await store.sync()
    await store.close()
    assert list((tmp_path / "rocks").glob("*.sst"))
    again = await open_store(tmp_path, options=SMALL)
    assert again.read_log(3990, 256) == [stored(pos) for pos in range(3991, 4001)]
    assert again.message_by_id(17) == stored(17)
    assert again.find_client_msg_no("c3", 2, "u", "n3") == (3, 3)
    await again.close()


async def test_a_directory_in_use_is_refused_with_the_pid(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with pytest.raises(DataDirectoryError, match=f"in use by process {os.getpid()}"):
        await open_store(tmp_path)
    await store.close()
    again = await open_store(tmp_path)
    await again.close()


def test_another_process_with_the_lock_is_named_and_its_death_frees_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wkhost.store.lock import DirectoryLock\n"
        "DirectoryLock(Path(sys.argv[1])).acquire(); print('locked', flush=True); input()"
    )
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirectoryError, match=f"in use by process {holder.pid};"):
            DirectoryLock(tmp_path).acquire()
        holder.kill()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()


async def test_a_path_that_cannot_be_a_directory_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the data directory"):
        await open_store(tmp_path / "file")


async def test_data_of_a_newer_version_is_refused_and_both_are_named(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    store.write([(keys.META, b"schema_version", keys.u64(schema.SCHEMA_VERSION + 6))])
    await store.close()
    text = f"version {schema.SCHEMA_VERSION + 6}.* up to {schema.SCHEMA_VERSION}"
    with pytest.raises(DataDirectoryError, match=text):
        await open_store(tmp_path)
    with pytest.raises(DataDirectoryError, match=text):
        await open_store(tmp_path)  # and the lock was given back: not "in use"


async def test_a_damaged_directory_is_named_as_such(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.close()
    (tmp_path / "rocks" / "CURRENT").write_text("nonsense\n")
    with pytest.raises(DataDirectoryError, match="damaged"):
        await open_store(tmp_path)


async def test_data_without_a_version_is_damaged() -> None:
    engine = MemoryEngine(keys.FAMILIES)
    engine.write(mutations.put_user("u"))
    with pytest.raises(DataDirectoryError, match="schema version is missing"):
        await schema.prepare(engine)


def rename_users(engine: Engine) -> Iterator[Sequence[Row]]:
    for key, _ in engine.scan(keys.USER, b"u", b"v", 256):
        yield [(keys.USER, key, None), (keys.USER, b"w" + key[1:], b"")]


def drop_users(engine: Engine) -> Iterator[Sequence[Row]]:
    for key, _ in engine.scan(keys.USER, b"w", b"x", 256):
        yield [(keys.USER, key, None), (keys.META, b"dropped", key)]


async def test_migrations_run_in_order_from_the_version_found() -> None:
    engine = MemoryEngine(keys.FAMILIES)
    await schema.prepare(engine, version=3)
    engine.write(mutations.put_user("a"))
    await schema.prepare(engine, version=5, migrations={3: rename_users, 4: drop_users})
    assert engine.get(keys.META, b"dropped") == b"wa"
    assert engine.scan(keys.USER, b"", b"\xff", 9) == []
    await schema.prepare(engine, version=5, migrations={})
    with pytest.raises(DataDirectoryError, match="no migration from version 5"):
        await schema.prepare(engine, version=6, migrations={})
