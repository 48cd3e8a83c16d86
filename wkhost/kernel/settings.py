"""What the kernel is told at start; the composition root fills it from the configuration."""

from __future__ import annotations

import msgspec

from wkhost.types import MANAGER_UID


class KernelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds, sizes in bytes. Names follow the configuration keys."""

    token_auth_on: bool = False
    manager_uid: str = MANAGER_UID
    manager_token: str = ""
    whitelist_off_of_person: bool = True
    visitors_on: bool = False
    visitors_suffix: str = "___vstr"
    journal_messages: int = 20_000
    plugin_timeout_s: float = 1.0
    max_payload_bytes: int = 512 * 1024
    """Largest payload of one message, at every door."""
    max_inflight_bytes: int = 64 * 1024 * 1024
    """Bytes of messages between admission and delivery, in all; beyond it SENDs get reason 22.
    Here and below a message counts its payload, its names and 512 bytes."""
    max_inflight_bytes_per_connection: int = 4 * 1024 * 1024
    max_lane_bytes: int = 4 * 1024 * 1024
    """Bytes that may wait in one lane (one sender in one channel)."""
    retry_interval_s: float = 60.0
    retry_scan_s: float = 30.0
    retry_max: int = 5
