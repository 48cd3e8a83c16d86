"""Retries: stored messages without RECVACK are pushed again while their connection lives.

A retry reads the message from the store and pushes the same frame. After `retry_max` tries it is
given up: the client reads history. Source: wire protocol, RECVACK, retry, offline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from wkhost.delivery.boundary import Outbox
from wkhost.delivery.presence import Pending, Presence, Session
from wkhost.delivery.views import view_for_others, view_for_sender
from wkhost.errors import StoreError
from wkhost.types import Message

SLICE_WORK = 512
"""What one synchronous stretch may do; a session looked at counts 1, a retry `RETRY_WORK`."""
RETRY_WORK = 8
RETRIES_PER_SLICE = SLICE_WORK // RETRY_WORK


class HistoryReader(Protocol):
    """The store's read that retries need."""

    def read_messages(
        self,
        channel_id: str,
        channel_type: int,
        first_seq: int,
        last_seq: int,
        limit: int,
        newest_first: bool = False,
    ) -> list[Message]: ...


class Retries:
    """The task that looks for overdue messages every `scan_s` seconds."""

    def __init__(
        self,
        outbox: Outbox,
        presence: Presence,
        store: HistoryReader,
        clock: Callable[[], float],
        *,
        interval_s: float,
        scan_s: float,
        retry_max: int,
    ) -> None:
        self._outbox = outbox
        self._presence = presence
        self._store = store
        self._clock = clock
        self._interval_s = interval_s
        self._scan_s = scan_s
        self._retry_max = retry_max
        self.retried = 0
        self.given_up = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await trio.sleep(self._scan_s)
            await self._scan()

    async def _scan(self) -> None:
        connected = self._presence.by_conn
        work = 0
        for session in list(connected.values()):
            more = True
            while more:
                if work >= SLICE_WORK:
                    self._outbox.flush()
                    await trio.lowlevel.checkpoint()
                    work = 0
                work += 1
                more = False
                if session.pending and session.conn_id in connected:
                    looked_at = self._retry_due(session)
                    work += looked_at * RETRY_WORK
                    more = looked_at == RETRIES_PER_SLICE
        self._outbox.flush()

    def _retry_due(self, session: Session) -> int:
        """Push up to a slice of what is due for one session; return how many that were.

        Fewer than `RETRIES_PER_SLICE`: nothing more is due, or the store cannot be read now.
        """
        now = self._clock()
        due: list[tuple[int, Pending]] = []
        for message_id, entry in session.pending.items():
            # Oldest first; retried entries go to the end.
            if entry.pushed_at + self._interval_s > now or len(due) == RETRIES_PER_SLICE:
                break
            due.append((message_id, entry))
        for looked_at, (message_id, entry) in enumerate(due):
            if not self._retry(session, message_id, entry, now):
                return looked_at
        return len(due)

    def _retry(self, session: Session, message_id: int, entry: Pending, now: float) -> bool:
        """Push one message again, or give it up. False: the store cannot be read now."""
        if entry.tries >= self._retry_max:
            del session.pending[message_id]
            self.given_up += 1
            return True
        seq = entry.message_seq
        try:
            found = self._store.read_messages(entry.channel_id, entry.channel_type, seq, seq, 1)
        except StoreError:
            return False
        del session.pending[message_id]
        if found:
            m = found[0]
            view = view_for_sender(m) if m.from_uid == session.uid else view_for_others(m)
            self._outbox.recv(view, [session.conn_id])
            session.pending[message_id] = msgspec.structs.replace(
                entry, pushed_at=now, tries=entry.tries + 1
            )
            self.retried += 1
        return True
