"""What a plugin may answer, and what its silence means.

Six outcomes: continue, replace, refuse, crash, timeout, overload. The last three are failures and
are turned into a decision by the written policy of that plugin and hook, never by chance.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from wkhost.errors import ReasonCode

MAX_REFUSE_TEXT_BYTES = 256


class Outcome(StrEnum):
    CONTINUE = "continue"
    REPLACE = "replace"
    REFUSE = "refuse"
    CRASH = "crash"
    TIMEOUT = "timeout"
    OVERLOAD = "overload"


CLOSED_REASON = {
    Outcome.CRASH: ReasonCode.SYSTEM_ERROR,
    Outcome.TIMEOUT: ReasonCode.SYSTEM_ERROR,
    Outcome.OVERLOAD: ReasonCode.RATE_LIMIT,
}
"""What a failure of a closed step refuses with."""


class Policy(StrEnum):
    """What a failure of one plugin's hook decides."""

    OPEN = "open"
    """Go on as if the plugin had said continue; edits of earlier plugins stay."""
    CLOSED = "closed"
    """Refuse: 15 for crash and timeout, 22 for overload."""
    HOLD = "hold"
    """Park until the plugin is back, at most `hold_ms`; then closed."""


class Continue(msgspec.Struct, frozen=True, gc=False):
    outcome = Outcome.CONTINUE


class Replace(msgspec.Struct, frozen=True, gc=False):
    """Go on with another payload."""

    payload: bytes
    outcome = Outcome.REPLACE


class Refuse(msgspec.Struct, frozen=True, gc=False):
    """Refuse the message for good. `code` is 2 to 255; `text` at most 256 bytes, no control
    characters. The bridge checks both: a violation is a crash."""

    code: int
    text: str = ""
    outcome = Outcome.REFUSE


class Failure(msgspec.Struct, frozen=True, gc=False):
    """No verdict came: `outcome` is crash, timeout or overload; `detail` is for the log."""

    outcome: Outcome
    detail: str = ""


Verdict = Continue | Replace | Refuse | Failure

CONTINUE = Continue()
