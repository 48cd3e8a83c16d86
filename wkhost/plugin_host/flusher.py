"""Calls of one turn of the loop leave together: the one task that flushes sessions."""

from __future__ import annotations

import trio

from wkhost.plugin_host.session import Session


class Flusher:
    """`schedule` is synchronous; `run` flushes what was scheduled once the loop comes round."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._wake = trio.Event()

    def schedule(self, session: Session) -> None:
        self._sessions.append(session)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            sessions, self._sessions = self._sessions, []
            for session in sessions:
                session.flush()
