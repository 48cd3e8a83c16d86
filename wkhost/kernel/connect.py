"""CONNECT to session: token, ban, plugins, and who must leave when somebody else logs in.

Only an explicit refusal (2, 19, or a plugin's own code) is answered with a CONNACK. When the
fault is ours (the store, a plugin that crashed or was too slow) the connection is closed without
one, because clients stop reconnecting after a refusal. Source: wire protocol, sections 4.1, 4.2.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable

import structlog

from wkhost.delivery.boundary import ConnectRequest, Outbox
from wkhost.delivery.presence import Presence, Session
from wkhost.errors import ReasonCode, StoreError
from wkhost.hooks.lookup import LookupAnswer
from wkhost.hooks.target import UserAnswer
from wkhost.hooks.verdict import Failure, Refuse
from wkhost.kernel.lookups import Lookups
from wkhost.kernel.permission import Permissions
from wkhost.kernel.settings import KernelSettings
from wkhost.store.store import Store
from wkhost.types import DeviceLevel

KICK_CLOSE_S = 2.0
"""How long a kicked connection may stay to read its DISCONNECT."""
KICK_TEXT = "login in other device"

log = structlog.get_logger(__name__)


class Logins:
    """Decides logins and keeps the sessions."""

    def __init__(
        self,
        *,
        settings: KernelSettings,
        store: Store,
        permissions: Permissions,
        lookups: Lookups,
        presence: Presence,
        outbox: Outbox,
        opened: Callable[[str, int], None],
        closed: Callable[[str, int], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._permissions = permissions
        self._lookups = lookups
        self._presence = presence
        self._outbox = outbox
        self._opened = opened
        self._closed = closed
        self._waiting: set[int] = set()
        """Connections whose login is being decided; one that closes meanwhile is taken out."""
        self.results: Counter[str] = Counter()

    def connect(self, request: ConnectRequest) -> None:
        """Decide a login, at once or when the plugins have answered."""
        connect = request.connect
        self._waiting.add(request.conn_id)
        self._lookups.login(
            connect.uid,
            connect.device_flag,
            connect.device_id,
            connect.token,
            request.peer_host,
            lambda answer: self._decide(request, answer),
        )

    def disconnected(self, conn_id: int) -> None:
        """A connection is gone, logged in or not."""
        self._waiting.discard(conn_id)
        session = self._presence.remove(conn_id)
        if session is not None:
            self._closed(session.uid, conn_id)

    def _decide(self, request: ConnectRequest, answer: LookupAnswer) -> None:
        conn_id = request.conn_id
        if conn_id not in self._waiting:
            return
        self._waiting.remove(conn_id)
        if isinstance(answer, Refuse):
            self._refuse(request, answer.code, answer.text)
            return
        if isinstance(answer, Failure):
            self._close(conn_id, f"plugin {answer.outcome}")
            return
        override = answer if isinstance(answer, UserAnswer) else None
        try:
            level = self._level(request, override)
            banned = self._banned(request.connect.uid, override)
        except StoreError:
            self._close(conn_id, "store")
            return
        if level is None:
            self._refuse(request, ReasonCode.AUTH_FAIL, "the token is wrong")
        elif banned:
            self._refuse(request, ReasonCode.BAN, "the user is banned")
        else:
            self._accept(request, level)

    def _refuse(self, request: ConnectRequest, code: int, text: str) -> None:
        self.results[f"refused {int(code)}"] += 1
        log.info("login_refused", uid=request.connect.uid, reason_code=int(code), text=text)
        self._outbox.refuse(request.conn_id, int(code), text)

    def _close(self, conn_id: int, why: str) -> None:
        self.results[f"closed: {why}"] += 1
        self._outbox.close(conn_id)

    def _level(self, request: ConnectRequest, override: UserAnswer | None) -> int | None:
        """Return the device level, or None when the token does not hold."""
        settings = self._settings
        connect = request.connect
        uid, token = connect.uid, connect.token
        if uid == settings.manager_uid:
            wanted = settings.manager_token
            return DeviceLevel.SLAVE if not wanted or _same(token, wanted) else None
        if override is not None and override.authenticated is not None:
            if not override.authenticated:
                return None
            level = int(DeviceLevel.SLAVE)
        elif override is not None and override.token is not None:
            if not override.token or not _same(token, override.token):
                return None
            level = int(DeviceLevel.SLAVE)
        elif not settings.token_auth_on or (
            settings.visitors_on and uid.endswith(settings.visitors_suffix)
        ):
            level = int(DeviceLevel.SLAVE)
        else:
            record = self._store.device(uid, connect.device_flag)
            if record is None or not record.token or not _same(token, record.token):
                return None
            level = record.device_level
        if override is not None and override.device_level is not None:
            return override.device_level
        return level

    def _banned(self, uid: str, override: UserAnswer | None) -> bool:
        if override is not None and override.ban is not None:
            return override.ban
        return self._permissions.login_banned(uid)

    def _accept(self, request: ConnectRequest, level: int) -> None:
        connect = request.connect
        session = Session(
            request.conn_id,
            connect.uid,
            connect.device_id,
            connect.device_flag,
            level,
            request.peer_host,
        )
        self._make_room(session)
        self._outbox.accept(session.conn_id)
        self._presence.add(session)
        self.results["accepted"] += 1
        self._opened(session.uid, session.conn_id)

    def _make_room(self, new: Session) -> None:
        """End older connections of the same user and device flag, by the table of section 4.2."""
        master = new.device_level == DeviceLevel.MASTER
        for old in list(self._presence.sessions(new.uid)):
            if old.device_flag != new.device_flag:
                continue
            if old.device_id == new.device_id:
                self._drop(old)
                self._outbox.close(old.conn_id, KICK_CLOSE_S)
            elif master:
                self._drop(old)
                self._outbox.disconnect(
                    old.conn_id, ReasonCode.CONNECT_KICK, KICK_TEXT, KICK_CLOSE_S
                )

    def kick(self, uid: str, device_flag: int, text: str, close_after_s: float) -> int:
        """End every connection of a user's device flag with a DISCONNECT; return how many."""
        kicked = [s for s in self._presence.sessions(uid) if s.device_flag == device_flag]
        for session in kicked:
            self._drop(session)
            self._outbox.disconnect(session.conn_id, ReasonCode.CONNECT_KICK, text, close_after_s)
        self._outbox.flush()
        return len(kicked)

    def _drop(self, session: Session) -> None:
        """Take a session out: it receives nothing more, and what it sends is ignored."""
        self._presence.remove(session.conn_id)
        self._closed(session.uid, session.conn_id)

    def statistics(self) -> dict[str, object]:
        return {"waiting": len(self._waiting), "results": dict(self.results)}


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())
