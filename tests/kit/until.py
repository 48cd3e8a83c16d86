"""Waiting for what other processes do, which no event tells."""

from __future__ import annotations

from collections.abc import Callable

import trio

POLL_S = 0.01


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds. The deadline is the caller's."""
    while not condition():  # noqa: ASYNC110 - another process cannot set an event
        await trio.sleep(POLL_S)
