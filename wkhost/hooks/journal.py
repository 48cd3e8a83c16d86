"""The decision journal: what each plugin said of each message that concerned it.

Bounded and in memory. It holds who and where, never a payload. Its entries are made in C and left
alone by the collector, because there are many and they live long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from wkhost.hooks.chain import Chain
from wkhost.hooks.records import HookLine
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import Outcome, Policy
from wkhost.types import Message

MESSAGES_KEPT = 20_000
MAX_PLUGINS_FOR_SIZE = 8
"""A message takes one entry per plugin; with more plugins fewer messages are kept."""


class Heard(msgspec.Struct, gc=False):
    """One plugin and one message. Times are on the monotonic clock.

    `called_at` is 0.0 when the plugin was not asked and the policy decided at once. `outcome` is
    None while the call is open. `policy` is set where a failure was turned into a decision, `code`
    and `text` where the message was refused here.
    """

    message_id: int
    door: str
    from_uid: str
    channel_id: str
    channel_type: int
    line: HookLine
    called_at: float
    answered_at: float = 0.0
    outcome: Outcome | None = None
    policy: Policy | None = None
    code: int = 0
    text: str = ""


class Journal:
    """The newest entries. `add` is the append of a bounded queue, which drops the oldest."""

    def __init__(self, messages: int = MESSAGES_KEPT) -> None:
        """Keep about `messages` messages; 0 keeps none."""
        self._messages = messages
        self._entries: deque[Heard] = deque(maxlen=messages)
        self.add = self._entries.append

    def __len__(self) -> int:
        return len(self._entries)

    def fit(self, chain: Chain) -> None:
        """Make room for the entries that a message of this chain takes; never less than before."""
        plugins = min(max(1, len(chain.send)), MAX_PLUGINS_FOR_SIZE)
        size = self._messages * plugins
        if size > (self._entries.maxlen or 0):
            self._entries = deque(self._entries, maxlen=size)
            self.add = self._entries.append

    def add_unasked(self, message: Message, origin: SendOrigin, line: HookLine) -> Heard:
        """Note a plugin that is not asked, because the budget is used up."""
        heard = Heard(
            message.message_id,
            origin.door,
            message.from_uid,
            message.channel_id,
            message.channel_type,
            line,
            0.0,
        )
        self.add(heard)
        return heard

    def find(self, message_id: int) -> Sequence[Heard]:
        """Return the entries of one message in the order the plugins were asked."""
        return [heard for heard in self._entries if heard.message_id == message_id]
