"""Who is online: uid -> sessions, connection number -> session. Written by logins only."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wkhost.hooks.target import SendOrigin
from wkhost.types import DeviceLevel

PENDING_MAX = 1000
"""Messages awaiting RECVACK that are kept per session; older ones are no longer retried."""


class Pending(msgspec.Struct, frozen=True, gc=False):
    """A delivered message that was not acknowledged, shared by all its recipients' sessions.

    It names the stored message; a retry reads it again. `pushed_at` is monotonic seconds.
    """

    channel_id: str
    channel_type: int
    message_seq: int
    pushed_at: float
    tries: int = 0


class Session:
    """One logged-in connection, as the kernel knows it.

    `pending` maps message_id to what awaits RECVACK, oldest first. `inflight_bytes` counts the
    payloads it has sent that are not answered yet; `origin` is what plugins are told of it.
    """

    __slots__ = (
        "conn_id",
        "device_flag",
        "device_id",
        "device_level",
        "inflight_bytes",
        "origin",
        "peer_host",
        "pending",
        "uid",
    )

    def __init__(
        self,
        conn_id: int,
        uid: str,
        device_id: str,
        device_flag: int,
        device_level: int,
        peer_host: str,
    ) -> None:
        self.conn_id = conn_id
        self.uid = uid
        self.device_id = device_id
        self.device_flag = device_flag
        self.device_level = device_level
        self.peer_host = peer_host
        self.pending: dict[int, Pending] = {}
        self.inflight_bytes = 0
        self.origin = SendOrigin("client", conn_id, device_id, device_flag)

    def __repr__(self) -> str:
        return f"<Session {self.conn_id} {self.uid} flag {self.device_flag}>"

    def await_recvack(self, message_id: int, entry: Pending) -> None:
        """Note that a stored message was pushed; the oldest entry gives way when full."""
        pending = self.pending
        pending[message_id] = entry
        if len(pending) > PENDING_MAX:
            del pending[next(iter(pending))]


class Presence:
    """All sessions. Plain lookups; changes only through `add` and `remove`."""

    def __init__(self) -> None:
        self.by_conn: dict[int, Session] = {}
        self.by_uid: dict[str, list[Session]] = {}

    def __len__(self) -> int:
        return len(self.by_conn)

    def add(self, session: Session) -> None:
        self.by_conn[session.conn_id] = session
        self.by_uid.setdefault(session.uid, []).append(session)

    def remove(self, conn_id: int) -> Session | None:
        """Forget a session; None when it is not (or no longer) known."""
        session = self.by_conn.pop(conn_id, None)
        if session is not None:
            sessions = self.by_uid[session.uid]
            sessions.remove(session)
            if not sessions:
                del self.by_uid[session.uid]
        return session

    def sessions(self, uid: str) -> list[Session]:
        """Return the sessions of a user, oldest first; do not change the list."""
        return self.by_uid.get(uid, _NONE)

    def offline(self, uids: Iterable[str]) -> list[str]:
        """Return those of `uids` that have no session at all."""
        by_uid = self.by_uid
        return [uid for uid in uids if uid not in by_uid]

    def without_master(self, uids: Iterable[str]) -> list[str]:
        """Return those of `uids` that have no session with the master level."""
        by_uid = self.by_uid
        return [
            uid
            for uid in uids
            if not any(s.device_level == DeviceLevel.MASTER for s in by_uid.get(uid, _NONE))
        ]


_NONE: list[Session] = []
