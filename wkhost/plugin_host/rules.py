"""What the operator sets for all plugins: when to give up on one, what to keep ready."""

from __future__ import annotations

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """`crashes` unasked deaths within `crash_window_s` seconds put a plugin into quarantine.

    `probation_s` is how long a version that took over can be taken back by itself (0: never).
    `spare`: every plugin gets a second process that waits. `max_lag` is how many messages an
    observer may lag behind before the oldest are dropped (0: any number).
    """

    crashes: int = 10
    crash_window_s: float = 120.0
    probation_s: float = 60.0
    spare: bool = False
    max_lag: int = 0


DEFAULT_RULES = Rules()
