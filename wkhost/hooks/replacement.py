"""What a replaced payload must keep to."""

from __future__ import annotations

import msgspec

from wkhost.hooks.verdict import Failure, Outcome


def replacement_failure(before: bytes, after: bytes, max_payload_bytes: int) -> Failure | None:
    """A replaced payload must fit, and stay JSON where the original was."""
    if len(after) > max_payload_bytes:
        return Failure(
            Outcome.CRASH,
            f"replaced payload has {len(after)} bytes, at most {max_payload_bytes} are allowed",
        )
    if _is_json(before) and not _is_json(after):
        return Failure(Outcome.CRASH, "replaced payload is not JSON, the original was")
    return None


def _is_json(payload: bytes) -> bool:
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
