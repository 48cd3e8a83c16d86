"""A plugin's own key-value store: durable, with quota, compare-and-set and expiry.

Keys are bytes to plugins and text to the store; Latin-1 maps one to the other and keeps the order.
Each change checks and writes in one synchronous stretch, so concurrent writers cannot both pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import trio

from wkhost.plugin_host.grpc import GrpcError, StatusCode
from wkhost.store import mutations
from wkhost.store.records import PluginValue
from wkhost.store.store import Store

MAX_KEY_BYTES = 512
MAX_VALUE_BYTES = 1024 * 1024
ENTRY_OVERHEAD_BYTES = 64
"""Counted against the quota for each entry besides key and value."""
MAX_PAGE = 256
COPIED_AT_ONCE = 64
MAX_LATE_KEYS = 64
"""Keys that may be left to copy in the one stretch in which another version takes over."""
MAX_PAGE_BYTES = 1024 * 1024


def anyone() -> None:
    """The check of a writer that may always write."""


class Entry(msgspec.Struct, frozen=True):
    key: bytes
    value: bytes
    version: int


class KeyValues:
    """The store of one plugin. All methods raise GrpcError, or StoreError where the disk does."""

    def __init__(self, no: str, store: Store, space: int = 0) -> None:
        """`space` tells the values of one version of the plugin from those of another."""
        # The sign is in no plugin's number.
        self._no = f"{no}~{space}" if space else no
        self._store = store
        self._changed: set[str] | None = None
        """Keys changed since a copy began, None while there is none."""
        self._used: int | None = None
        self._counting = trio.Lock()
        self._last_version = 0

    def get(self, key: bytes) -> Entry | None:
        found = self._find(_checked_key(key))
        return None if found is None else Entry(key, found.value, found.version)

    async def put(
        self,
        key: bytes,
        value: bytes,
        quota: int,
        ttl_ms: int = 0,
        if_version: int | None = None,
        *,
        check: Callable[[], None] = anyone,
    ) -> int:
        """Write durably and return the new version. `check` raises where the writer may not write
        any more; it is asked in the stretch that writes."""
        name = _checked_key(key)
        if len(value) > MAX_VALUE_BYTES:
            raise _invalid(f"value: expected at most {MAX_VALUE_BYTES} bytes, got {len(value)}")
        if ttl_ms > 2**48:
            raise _invalid("ttl_ms: expected at most 2^48")
        used = self._used
        if used is None:
            used = await self._count()
        before = self._find(name)
        added = _size(name, value) - (0 if before is None else _size(name, before.value))
        if added > 0 and used + added > quota:
            self._used = None
            used = await self._count()
            before = self._find(name)
            added = _size(name, value) - (0 if before is None else _size(name, before.value))
            if used + added > quota:
                raise GrpcError(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"kv_bytes: {quota} bytes granted, {used} used, {added} more needed",
                )
        check()
        self._check_version(before, if_version)
        version = self._next_version(before)
        expires_at_ms = _now_ms() + ttl_ms if ttl_ms else 0
        self._store.write(mutations.put_plugin_value(self._no, name, value, version, expires_at_ms))
        self._used = used + added
        self._note(name)
        await self._store.sync_soon()
        return version

    async def delete(
        self,
        key: bytes,
        if_version: int | None = None,
        *,
        check: Callable[[], None] = anyone,
    ) -> bool:
        """Delete durably; return whether it was there."""
        name = _checked_key(key)
        check()
        before = self._find(name)
        self._check_version(before, if_version)
        if before is None:
            return False
        self._store.write(mutations.delete_plugin_value(self._no, name))
        if self._used is not None:
            self._used -= _size(name, before.value)
        self._note(name)
        await self._store.sync_soon()
        return True

    def scan(self, prefix: bytes, after: bytes, limit: int) -> tuple[list[Entry], bool]:
        """Return a page in the order of keys, and whether there is more."""
        if len(prefix) > MAX_KEY_BYTES or len(after) > MAX_KEY_BYTES:
            raise _invalid(f"prefix, after: expected at most {MAX_KEY_BYTES} bytes")
        if limit > MAX_PAGE:
            raise _invalid(f"limit: expected at most {MAX_PAGE}, got {limit}")
        wanted = limit or 100
        found: list[Entry] = []
        size = 0
        start: str | None = after.decode("latin-1")
        while start is not None:
            page, following = self._store.list_plugin_values(
                self._no, prefix.decode("latin-1"), start, wanted, now_ms=_now_ms()
            )
            for name, row in page:
                if len(found) == wanted or (found and size + len(row.value) > MAX_PAGE_BYTES):
                    return found, True
                size += len(row.value)
                found.append(Entry(name.encode("latin-1"), row.value, row.version))
            start = following
            if len(found) == wanted:
                return found, start is not None
        return found, False

    async def clear(self) -> None:
        self._store.write(mutations.clear_plugin_values(self._no))
        self._used = None
        await self._store.sync()

    # --- a copy for another version -------------------------------------------------------------

    async def copy_to(self, other: KeyValues) -> None:
        """Copy all values while this one stays in use; `finish_copy` brings what changes since."""
        other._store.write(mutations.clear_plugin_values(other._no))
        self._changed = set()
        start: str | None = ""
        while start is not None:
            page, start = self._store.list_plugin_values(
                self._no, after_key=start, limit=COPIED_AT_ONCE, now_ms=_now_ms()
            )
            for name, row in page:
                other._put_row(name, row)
            # What waits to be written must not grow with what there is to copy.
            await self._store.sync()
        while len(self._changed) > MAX_LATE_KEYS:
            names, self._changed = self._changed, set()
            for name in names:
                self._copy_row(name, other)
            await trio.lowlevel.checkpoint()
        await self._store.sync()

    def finish_copy(self, other: KeyValues) -> None:
        """Bring the last changes, in one stretch; from here on `other` is the newer one."""
        changed, self._changed = self._changed, None
        for name in changed or ():
            self._copy_row(name, other)
        other._last_version = max(other._last_version, self._last_version)

    def abandon_copy(self) -> None:
        self._changed = None

    def _copy_row(self, name: str, other: KeyValues) -> None:
        row = self._find(name)
        if row is None:
            self._store.write(mutations.delete_plugin_value(other._no, name))
            other._used = None
        else:
            other._put_row(name, row)

    def _put_row(self, name: str, row: PluginValue) -> None:
        self._used = None
        self._store.write(
            mutations.put_plugin_value(self._no, name, row.value, row.version, row.expires_at_ms)
        )

    # --- inside ---------------------------------------------------------------------------------

    def _note(self, name: str) -> None:
        if self._changed is not None:
            self._changed.add(name)

    def _find(self, name: str) -> PluginValue | None:
        return self._store.plugin_value(self._no, name, _now_ms())

    async def _count(self) -> int:
        """Return the bytes in use, counting the rows once for all that wait for it."""
        async with self._counting:
            if self._used is not None:
                return self._used
            total = 0
            start: str | None = ""
            while start is not None:
                page, start = self._store.list_plugin_values(
                    self._no, after_key=start, now_ms=_now_ms()
                )
                total += sum(_size(name, row.value) for name, row in page)
                await trio.lowlevel.checkpoint()
            self._used = total
            return total

    def _check_version(self, before: PluginValue | None, if_version: int | None) -> None:
        actual = 0 if before is None else before.version
        if if_version is not None and if_version != actual:
            raise GrpcError(StatusCode.ABORTED, f"if_version: expected {actual}, got {if_version}")

    def _next_version(self, before: PluginValue | None) -> int:
        """Above every version of any key so far, so that a deleted key's number never returns."""
        floor = 0 if before is None else before.version
        self._last_version = max(self._last_version + 1, floor + 1, _now_ms())
        return self._last_version


def _checked_key(key: bytes) -> str:
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise _invalid(f"key: expected 1 to {MAX_KEY_BYTES} bytes, got {len(key)}")
    return key.decode("latin-1")


def _size(name: str, value: bytes) -> int:
    return len(name) + len(value) + ENTRY_OVERHEAD_BYTES


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _invalid(text: str) -> GrpcError:
    return GrpcError(StatusCode.INVALID_ARGUMENT, text)
