"""What is decided about a CONNECT from its own bytes, before anyone else is asked.

Source: wire protocol, Life of a connection and Encryption.
"""

from __future__ import annotations

from typing import Final

from wkhost.errors import ReasonCode, Refused, RemoteProtocolError
from wkhost.protocol.codec import decode_connect
from wkhost.protocol.crypto import BadKeyError, parse_public_key
from wkhost.protocol.framing import CONNECT, decode_length
from wkhost.protocol.packets import Connect
from wkhost.types import SYSTEM_DEVICE_ID, SYSTEM_UID

MAX_UNAUTHENTICATED_BYTES: Final = 256 * 1024
"""Most that is buffered for a connection whose login is not accepted yet."""

_UID_FORBIDDEN = frozenset("@#&")
_I64_MAX = 2**63 - 1


def cut_connect(pending: bytearray, max_frame_bytes: int) -> Connect | None:
    """Cut the first frame, which must be CONNECT, off `pending`; None if it is incomplete."""
    if pending[0] >> 4 != CONNECT:
        raise RemoteProtocolError("the first packet must be CONNECT")
    header = decode_length(pending, 1, min(max_frame_bytes, MAX_UNAUTHENTICATED_BYTES))
    if header is None:
        return None
    length, start = header
    end = start + length
    if len(pending) < end:
        return None
    connect = decode_connect(bytes(pending[:end]), start, end)
    del pending[:end]
    return connect


def check_identity(connect: Connect) -> None:
    """Raises RemoteProtocolError (close) or Refused (answer, then close)."""
    uid = connect.uid
    if not uid.strip() or not _UID_FORBIDDEN.isdisjoint(uid):
        raise RemoteProtocolError("CONNECT: uid is blank or holds one of @ # &")
    if uid == SYSTEM_UID or connect.device_id == SYSTEM_DEVICE_ID:
        raise Refused(ReasonCode.AUTH_FAIL, "this uid or device_id is the system's own")


def check_client_key(connect: Connect) -> bytes:
    """Return the 32 bytes of client_key. Raises Refused."""
    try:
        return parse_public_key(connect.client_key)
    except BadKeyError as e:
        raise Refused(ReasonCode.CLIENT_KEY_IS_EMPTY, f"client_key: {e}") from e


def time_diff(now_ms: int, client_timestamp: int) -> int:
    """Server minus client clock, kept within 64 bits: a client may state any number."""
    return max(-_I64_MAX, min(_I64_MAX, now_ms - client_timestamp))


def reason_name(reason_code: int) -> str:
    """Return a reason code's name in words, for texts that people see."""
    try:
        return ReasonCode(reason_code).name.lower().replace("_", " ")
    except ValueError:
        return f"reason {reason_code}"
