"""A message on its way through the `send` chain, as data owned by the dispatcher."""

from __future__ import annotations

from wkhost.hooks.chain import Chain
from wkhost.hooks.records import HookLine
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import Failure, Refuse
from wkhost.types import Message


class Passage:
    """One message between admission and decision.

    `step` is the index of the chain's step that is asked now; `deadline` ends the budget of the
    whole chain; `call_id` is the open call (0 = none). `refusal` is set when the chain has ended
    it. `held_since` is when it was parked first under the hold policy (0.0 = never), `failure` why,
    since `failed_at`. `line` is the plugin's end that is asked now, or was last, since `called_at`
    (0.0 = decided without asking).
    """

    __slots__ = (
        "call_id",
        "called_at",
        "chain",
        "deadline",
        "failed_at",
        "failure",
        "held_since",
        "line",
        "message",
        "origin",
        "refusal",
        "step",
    )

    failure: Failure
    failed_at: float
    line: HookLine

    def __init__(self, message: Message, origin: SendOrigin, chain: Chain) -> None:
        self.message = message
        self.origin = origin
        self.chain = chain
        self.step = 0
        self.call_id = 0
        self.deadline = 0.0
        self.called_at = 0.0
        self.held_since = 0.0
        self.refusal: Refuse | None = None

    def __repr__(self) -> str:
        return f"<Passage {self.message.message_id} step {self.step}>"
