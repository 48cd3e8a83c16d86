"""Package work reads, writes and syncs files; it must not hold the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Return what `function` returns. Cancellation: it runs to its end first."""
    return await trio.to_thread.run_sync(function, *args)
