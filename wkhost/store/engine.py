"""What the store needs of an ordered key-value store; `rocks` and `memory` implement it.

No knowledge of messages or channels lives here: keys and values are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

MAX_SCAN_ROWS = 256
"""Most rows of one `Engine.scan`: a scan holds the trio thread, and 256 rows take about 0.5 ms."""


class Until(msgspec.Struct, frozen=True, gc=False):
    """As the value of a row: delete every key from the row's key up to `end`, not included."""

    end: bytes


Row = tuple[str, bytes, bytes | Until | None]
"""One change: (family, key, value). A value of None deletes the key. Later rows win."""


class Engine(Protocol):
    """Ordered byte rows in named families, written in atomic batches.

    `get`, `scan` and `write` are synchronous and short; everything that may block is async and
    runs elsewhere. After a failed `write` (other than busy) or `sync`, rows of unknown fate may
    be readable; only `reopen` brings the engine back.
    """

    def get(self, family: str, key: bytes) -> bytes | None:
        """Return the value of `key`, or None. Raises StoreError."""
        ...

    def scan(
        self, family: str, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` (<= MAX_SCAN_ROWS) rows with start <= key < end, ascending.

        With `reverse` the rows are the greatest of the range, in descending order.
        Raises StoreError.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Apply `rows` as one batch: all or none after a crash, readable at once, not yet durable.

        Raises StoreBusyError on a write stall: nothing was applied, write the same rows later.
        Raises StoreError when the disk refuses; whether the rows are there is then unknown.
        """
        ...

    async def sync(self) -> None:
        """Return when everything written before the call is durable. Raises StoreError.

        Cancellation: the sync still takes place, its outcome is not told.
        """
        ...

    async def reopen(self) -> None:
        """Close, whatever the close says, and open again.

        Rows that were durable are there; others may be. Raises StoreError, and may then be
        called again.
        """
        ...

    async def close(self) -> None:
        """Close and free everything; a second call does nothing."""
        ...
