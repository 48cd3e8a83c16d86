"""What all reads of the store share: the engine and the question whether it may be read now."""

from __future__ import annotations

from wkhost.errors import StoreBusyError, StoreError
from wkhost.store.engine import Engine


class Reader:
    """Base of the store's read methods. `_blocked` is None while reads are allowed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._blocked: type[StoreError] | None = None
        self._blocked_text = ""
        self.reads = 0
        """Row look-ups and range reads since the start."""

    def _block(self, error: type[StoreError], text: str) -> None:
        self._blocked, self._blocked_text = error, text

    def _unblock(self) -> None:
        self._blocked = None

    def _get(self, family: str, key: bytes) -> bytes | None:
        if self._blocked is not None:
            raise self._blocked(self._blocked_text)
        self.reads += 1
        return self._engine.get(family, key)

    def _scan(
        self, family: str, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        if self._blocked is not None:
            raise self._blocked(self._blocked_text)
        self.reads += 1
        return self._engine.scan(family, start, end, limit, reverse)


REOPENING = (StoreBusyError, "the store is reopening")
CLOSED = (StoreError, "the store is closed")
