"""What the kernel process tells an API worker at its start, over the worker's control socket."""

from __future__ import annotations

import msgspec

READY = b"ready\n"
"""What the worker writes to the control socket once it is linked and serves."""


class WorkerSettings(msgspec.Struct, frozen=True):
    """`link_token` proves the worker's role; `mode` is the server's (`release`, `debug`, …)."""

    link_path: str
    link_token: str
    manager_token: str = ""
    mode: str = "debug"
    max_body_bytes: int = 4 * 1024 * 1024
    answer_timeout_s: float = 10.0
    drain_s: float = 8.0
    log_level: int = 20


def encode_settings(settings: WorkerSettings) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(settings) + b"\n"


def decode_settings(line: bytes) -> WorkerSettings:
    """Raises: msgspec.MsgspecError."""
    return msgspec.json.decode(line, type=WorkerSettings)
