"""The version of the data directory's layout, and how an older one becomes the present one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import trio

from wkhost.errors import DataDirectoryError, StoreBusyError
from wkhost.store import keys
from wkhost.store.engine import Engine, Row

SCHEMA_VERSION = 1
_NAME = b"schema_version"
_RETRY_S = 0.01
_ABOVE_ALL = b"\xff" * 64

Migration = Callable[[Engine], Iterator[Sequence[Row]]]
"""Yields batches of rows that turn version n into n + 1. A crash repeats the step from its start,
so doing it twice must do no harm."""

MIGRATIONS: dict[int, Migration] = {}
"""The step from each version to the next."""


async def prepare(
    engine: Engine,
    *,
    version: int = SCHEMA_VERSION,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> None:
    """Bring the data to `version`; an empty engine is marked with it.

    Raises DataDirectoryError if the data is newer than `version`, carries no version or cannot
    be migrated; StoreError if the disk refuses.
    """
    found = _found_version(engine)
    if found is None:
        await _write(engine, [_version_row(version)])
        await engine.sync()
        return
    if found > version:
        raise DataDirectoryError(
            f"the data has schema version {found}, written by a newer wkhost; this one reads "
            f"versions up to {version}"
        )
    for step in range(found, version):
        migration = migrations.get(step)
        if migration is None:
            raise DataDirectoryError(
                f"the data has schema version {found}; this wkhost has no migration from "
                f"version {step} on its way to {version}"
            )
        for rows in migration(engine):
            await _write(engine, rows)
        await _write(engine, [_version_row(step + 1)])
        await engine.sync()


def _found_version(engine: Engine) -> int | None:
    value = engine.get(keys.META, _NAME)
    if value is not None:
        return int.from_bytes(value, "big")
    for family in keys.FAMILIES:
        if engine.scan(family, b"", _ABOVE_ALL, 1):
            raise DataDirectoryError("the data directory is damaged: its schema version is missing")
    return None


def _version_row(version: int) -> Row:
    return (keys.META, _NAME, keys.u64(version))


async def _write(engine: Engine, rows: Sequence[Row]) -> None:
    while True:
        try:
            engine.write(rows)
        except StoreBusyError:
            await trio.sleep(_RETRY_S)
        else:
            await trio.lowlevel.checkpoint()
            return
