"""Changes of metadata as rows, to be given to `Store.write` or to `Store.append`.

Pure: nothing is read and nothing written here. Each function returns the rows of one change.
"""

from __future__ import annotations

from collections.abc import Iterable

from wkhost.store import keys, records
from wkhost.store.engine import Row, Until
from wkhost.store.keys import MemberKind
from wkhost.types import ChannelInfo, DeviceRecord

CURSOR_PREFIX = "cursor/"
MESSAGE_ID_CEILING = "message_id_ceiling"


def put_channel(channel_id: str, channel_type: int, info: ChannelInfo) -> list[Row]:
    """Create the channel's record or replace it."""
    return [(keys.CHANNEL, keys.channel(channel_id, channel_type), records.encode_channel(info))]


def delete_channel(channel_id: str, channel_type: int) -> list[Row]:
    """Remove the channel's record and its three lists; its messages stay."""
    key = keys.channel(channel_id, channel_type)
    return [(keys.CHANNEL, key, None), (keys.MEMBER, key, Until(keys.prefix_end(key)))]


def put_members(
    kind: MemberKind, channel_id: str, channel_type: int, uids: Iterable[str], role: int = 0
) -> list[Row]:
    """Put `uids` on a list, each with `role`; those already there get the role."""
    prefix = keys.members(kind, channel_id, channel_type)
    value = records.encode(records.MemberRow(role))
    return [(keys.MEMBER, prefix + uid.encode(), value) for uid in uids]


def delete_members(
    kind: MemberKind, channel_id: str, channel_type: int, uids: Iterable[str]
) -> list[Row]:
    """Take `uids` off a list; those not on it are ignored."""
    prefix = keys.members(kind, channel_id, channel_type)
    return [(keys.MEMBER, prefix + uid.encode(), None) for uid in uids]


def clear_members(kind: MemberKind, channel_id: str, channel_type: int) -> list[Row]:
    """Empty a list. Rows of `put_members` that follow in the same write fill it anew."""
    prefix = keys.members(kind, channel_id, channel_type)
    return [(keys.MEMBER, prefix, Until(keys.prefix_end(prefix)))]


def put_user(uid: str) -> list[Row]:
    """Note that the user exists."""
    return [(keys.USER, keys.user(uid), b"")]


def put_device(uid: str, device_flag: int, record: DeviceRecord) -> list[Row]:
    """Set what a device of the user logs in with; the user exists from then on."""
    value = records.encode(records.DeviceRow(record.token, record.device_level))
    return [*put_user(uid), (keys.USER, keys.device(uid, device_flag), value)]


def delete_device(uid: str, device_flag: int) -> list[Row]:
    """Forget a device; the user stays."""
    return [(keys.USER, keys.device(uid, device_flag), None)]


def put_system_uids(uids: Iterable[str]) -> list[Row]:
    return [(keys.USER, keys.system_uid(uid), b"") for uid in uids]


def delete_system_uids(uids: Iterable[str]) -> list[Row]:
    return [(keys.USER, keys.system_uid(uid), None) for uid in uids]


def put_plugin_value(
    plugin_no: str, key: str, value: bytes, version: int, expires_at_ms: int = 0
) -> list[Row]:
    """Set a plugin's value. The caller compares and raises `version`, in the same sync stretch."""
    row = records.encode(records.PluginRow(value, version, expires_at_ms))
    return [(keys.PLUGIN, keys.plugin(plugin_no) + key.encode(), row)]


def delete_plugin_value(plugin_no: str, key: str) -> list[Row]:
    return [(keys.PLUGIN, keys.plugin(plugin_no) + key.encode(), None)]


def clear_plugin_values(plugin_no: str) -> list[Row]:
    """Remove all values of a plugin."""
    prefix = keys.plugin(plugin_no)
    return [(keys.PLUGIN, prefix, Until(keys.prefix_end(prefix)))]


def put_cache(key: bytes, value: bytes, expires_at_ms: int) -> list[Row]:
    """Keep a look-up's answer until `expires_at_ms` (milliseconds since the epoch)."""
    return [(keys.CACHE, key, records.encode(records.CacheRow(value, expires_at_ms)))]


def delete_cache(key: bytes) -> list[Row]:
    return [(keys.CACHE, key, None)]


def put_cursor(name: str, log_pos: int) -> list[Row]:
    """Note that the observer `name` is done with everything up to `log_pos`."""
    return put_meta(CURSOR_PREFIX + name, keys.u64(log_pos))


def delete_cursor(name: str) -> list[Row]:
    return delete_meta(CURSOR_PREFIX + name)


def put_message_id_ceiling(ceiling: int) -> list[Row]:
    """Promise that no message_id above `ceiling` is given before a higher one is durable."""
    return put_meta(MESSAGE_ID_CEILING, keys.u64(ceiling))


def put_meta(name: str, value: bytes) -> list[Row]:
    return [(keys.META, name.encode(), value)]


def delete_meta(name: str) -> list[Row]:
    return [(keys.META, name.encode(), None)]
