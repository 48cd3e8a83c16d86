"""A message on its way through the `send` chain, as data owned by the dispatcher."""

from __future__ import annotations

from typing import Any

import msgspec

from wkhost.hooks.chain import Chain
from wkhost.hooks.records import HookLine
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import Failure, Refuse
from wkhost.types import Message

UNKNOWN: Any = None
"""Stands in a field that is set before anybody reads it."""


class Passage(msgspec.Struct, eq=False):
    """One message between admission and decision.

    `step` is the index of the chain's step that is asked now; `deadline` ends the budget of the
    whole chain; `call_id` is the open call (0 = none). `refusal` is set when the chain has ended
    it. `held_since` is when it was parked first under the hold policy (0.0 = never), `failure` why,
    since `failed_at`. `line` is the plugin's end that is asked now, or was last, since `called_at`
    (0.0 = decided without asking).
    """

    message: Message
    origin: SendOrigin
    chain: Chain
    step: int = 0
    call_id: int = 0
    deadline: float = 0.0
    called_at: float = 0.0
    held_since: float = 0.0
    refusal: Refuse | None = None
    failure: Failure = UNKNOWN
    failed_at: float = 0.0
    line: HookLine = UNKNOWN

    def __repr__(self) -> str:
        return f"<Passage {self.message.message_id} step {self.step}>"
