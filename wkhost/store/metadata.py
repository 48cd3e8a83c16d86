"""Reads of everything that is not a message. The changes are in `mutations`."""

from __future__ import annotations

import trio

from wkhost.store import keys, records
from wkhost.store.engine import MAX_SCAN_ROWS, Row
from wkhost.store.keys import MemberKind
from wkhost.store.mutations import CURSOR_PREFIX, MESSAGE_ID_CEILING
from wkhost.store.reader import Reader
from wkhost.store.records import Member, PluginValue
from wkhost.types import ChannelInfo, DeviceRecord


class MetadataReader(Reader):
    """Reads of channels, members, users, plugin values, cursors and the look-up cache.

    Lists come in pages of at most `MAX_SCAN_ROWS`; pass the last name as `after` for the next.
    """

    def channel_info(self, channel_id: str, channel_type: int) -> ChannelInfo | None:
        """Return the stored record, or None if the channel was never created."""
        value = self._get(keys.CHANNEL, keys.channel(channel_id, channel_type))
        return None if value is None else records.decode_channel(value)

    def has_member(self, kind: MemberKind, channel_id: str, channel_type: int, uid: str) -> bool:
        """Return whether `uid` is on the list."""
        prefix = keys.members(kind, channel_id, channel_type)
        return self._get(keys.MEMBER, prefix + uid.encode()) is not None

    def any_member(self, kind: MemberKind, channel_id: str, channel_type: int) -> bool:
        """Return whether anyone is on the list."""
        prefix = keys.members(kind, channel_id, channel_type)
        return bool(self._scan(keys.MEMBER, prefix, keys.prefix_end(prefix), 1))

    def list_members(
        self,
        kind: MemberKind,
        channel_id: str,
        channel_type: int,
        after_uid: str = "",
        limit: int = MAX_SCAN_ROWS,
    ) -> list[Member]:
        """Return a page of the list, ascending by the UTF-8 bytes of the uid."""
        prefix = keys.members(kind, channel_id, channel_type)
        rows = self._page(keys.MEMBER, prefix, after_uid, limit)
        return [Member(uid, records.decode_role(value)) for uid, value in rows]

    async def member_count(self, kind: MemberKind, channel_id: str, channel_type: int) -> int:
        """Count the list, giving way to other tasks between pages."""
        prefix = keys.members(kind, channel_id, channel_type)
        start, end, count = prefix, keys.prefix_end(prefix), 0
        while True:
            rows = self._scan(keys.MEMBER, start, end, MAX_SCAN_ROWS)
            count += len(rows)
            await trio.lowlevel.checkpoint()
            if len(rows) < MAX_SCAN_ROWS:
                return count
            start = keys.after(rows[-1][0])

    def user_exists(self, uid: str) -> bool:
        """Return whether the user was ever stored."""
        return self._get(keys.USER, keys.user(uid)) is not None

    def device(self, uid: str, device_flag: int) -> DeviceRecord | None:
        """Return what the user's device logs in with, or None."""
        value = self._get(keys.USER, keys.device(uid, device_flag))
        return None if value is None else records.decode_device(value)

    def devices(self, uid: str) -> dict[int, DeviceRecord]:
        """Return the user's devices by device_flag."""
        prefix = keys.devices(uid)
        rows = self._scan(keys.USER, prefix, keys.prefix_end(prefix), MAX_SCAN_ROWS)
        return {key[-1]: records.decode_device(value) for key, value in rows}

    def is_system_uid(self, uid: str) -> bool:
        return self._get(keys.USER, keys.system_uid(uid)) is not None

    def list_system_uids(self, after_uid: str = "", limit: int = MAX_SCAN_ROWS) -> list[str]:
        """Return a page of the system uids, ascending."""
        return [uid for uid, _ in self._page(keys.USER, keys.SYSTEM_UIDS, after_uid, limit)]

    def plugin_value(self, plugin_no: str, key: str, now_ms: int) -> PluginValue | None:
        """Return a plugin's value, or None if there is none or it has expired."""
        value = self._get(keys.PLUGIN, keys.plugin(plugin_no) + key.encode())
        if value is None:
            return None
        found = records.decode_plugin_value(value)
        return found if _lives(found.expires_at_ms, now_ms) else None

    def list_plugin_values(
        self,
        plugin_no: str,
        prefix: str = "",
        after_key: str = "",
        limit: int = MAX_SCAN_ROWS,
        *,
        now_ms: int,
    ) -> tuple[list[tuple[str, PluginValue]], str | None]:
        """Return a page of (key, value) whose key starts with `prefix`, and where to go on.

        The second value is the next `after_key`, or None after the last page. Expired values
        are left out, so a page may be shorter than `limit` and not be the last.
        """
        limit = min(limit, MAX_SCAN_ROWS)
        base = keys.plugin(plugin_no)
        full = base + prefix.encode()
        start = max(full, keys.after(base + after_key.encode())) if after_key else full
        rows = self._scan(keys.PLUGIN, start, keys.prefix_end(full), limit)
        found = [(key[len(base) :].decode(), records.decode_plugin_value(v)) for key, v in rows]
        following = found[-1][0] if len(found) == limit and found else None
        return [(key, v) for key, v in found if _lives(v.expires_at_ms, now_ms)], following

    def cached(self, key: bytes, now_ms: int) -> bytes | None:
        """Return a cached answer, or None if there is none or it has expired."""
        value = self._get(keys.CACHE, key)
        if value is None:
            return None
        row = records.decode_cache(value)
        return row.value if _lives(row.expires_at_ms, now_ms) else None

    def expired_rows(
        self, family: str, now_ms: int, start: bytes = b"", limit: int = MAX_SCAN_ROWS
    ) -> tuple[list[Row], bytes | None]:
        """Look at one page of `keys.CACHE` or `keys.PLUGIN` for rows that have expired.

        Returns their deletions and the `start` of the next page, None after the last.
        """
        limit = min(limit, MAX_SCAN_ROWS)
        rows = self._scan(family, start, _ABOVE_ALL, limit)
        expired: list[Row] = []
        for key, value in rows:
            if family == keys.CACHE:
                expires_at_ms = records.decode_cache(value).expires_at_ms
            else:
                expires_at_ms = records.decode_plugin_value(value).expires_at_ms
            if not _lives(expires_at_ms, now_ms):
                expired.append((family, key, None))
        return expired, keys.after(rows[-1][0]) if len(rows) == limit else None

    def cursor(self, name: str) -> int | None:
        """Return the log_pos that the observer `name` has finished, or None if it is unknown."""
        value = self.meta(CURSOR_PREFIX + name)
        return None if value is None else keys.log_pos_of(value)

    def message_id_ceiling(self) -> int:
        """Return the id above which none was given before the last write of it; 0 at first."""
        value = self.meta(MESSAGE_ID_CEILING)
        return 0 if value is None else int.from_bytes(value, "big")

    def meta(self, name: str) -> bytes | None:
        """Return a value kept with `mutations.put_meta`, or None."""
        return self._get(keys.META, name.encode())

    def _page(self, family: str, prefix: bytes, after: str, limit: int) -> list[tuple[str, bytes]]:
        start = keys.after(prefix + after.encode()) if after else prefix
        rows = self._scan(family, start, keys.prefix_end(prefix), limit)
        return [(key[len(prefix) :].decode(), value) for key, value in rows]


_ABOVE_ALL = b"\xff" * 64


def _lives(expires_at_ms: int, now_ms: int) -> bool:
    return expires_at_ms == 0 or expires_at_ms > now_ms
