"""The decision journal: what each plugin said of each message that concerned it, and why messages
were refused before any plugin was asked.

Bounded and in memory. It holds who and where, never a payload.

Theory of operation. An entry is one plain tuple in the order of the fields of `Heard`, made when
the step is decided; what is still open stands with the dispatcher. Tuples are packed, many at a
time, into blocks of bytes, which take less than half the room and leave no old objects among young
ones. A block is looked into only when the id that is sought stands in its bytes. The oldest blocks
are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from wkhost.hooks.chain import Chain
from wkhost.hooks.passage import Passage
from wkhost.hooks.records import Asked
from wkhost.hooks.verdict import Outcome, Policy

MESSAGES_KEPT = 20_000
MAX_PLUGINS_FOR_SIZE = 8
"""A message takes one entry per plugin; with more plugins fewer messages are kept."""
BLOCK_ENTRIES = 256
"""Packed in one stretch of some 30 µs."""


class Heard(msgspec.Struct, gc=False, array_like=True):
    """One plugin and one message, as it is read. Times are on the monotonic clock.

    `plugin` is None where the kernel refused the message itself. `called_at` is 0.0 when the plugin
    was not asked and the policy decided at once. `outcome` is None while the call is open. `policy`
    is set where a failure was turned into a decision, `code` and `text` where the message was
    refused here. `parked`: it waits for its plugin under the hold policy.
    """

    message_id: int
    door: str
    from_uid: str
    channel_id: str
    channel_type: int
    plugin: Asked | None
    called_at: float
    answered_at: float = 0.0
    outcome: Outcome | None = None
    policy: Policy | None = None
    code: int = 0
    text: str = ""
    parked: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Heard]).decode


class Journal:
    """The newest entries. Whoever calls `add` calls `tidy` when it has added what it had."""

    def __init__(self, messages: int = MESSAGES_KEPT) -> None:
        """Keep about `messages` messages, at least 1."""
        self._messages = messages
        self._size = self._block = 0
        self._recent: list[tuple[Any, ...]] = []
        self._blocks: deque[tuple[int, bytes]] = deque()
        self._packed = 0
        self.add = self._recent.append
        """Takes the first fields of a `Heard` as a tuple, `plugin` as `HookLine.stamp`."""
        self._fit(messages)

    def __len__(self) -> int:
        return self._packed + len(self._recent)

    def fit(self, chain: Chain) -> None:
        """Make room for the entries that a message of this chain takes; never less than before."""
        self._fit(self._messages * min(max(1, len(chain.send)), MAX_PLUGINS_FOR_SIZE))

    def _fit(self, size: int) -> None:
        self._size = max(self._size, size)
        self._block = min(BLOCK_ENTRIES, max(1, self._size // 8))

    def note(
        self,
        passage: Passage,
        at: float,
        outcome: Outcome,
        policy: Policy | None = None,
        code: int = 0,
        text: str = "",
    ) -> None:
        """Note what the step that the passage is at came to."""
        m = passage.message
        who = (m.message_id, passage.origin.door, m.from_uid, m.channel_id, m.channel_type)
        said = (passage.called_at, at, outcome.value, policy and policy.value, code, text)
        self.add((*who, passage.line.stamp, *said))
        self.tidy()

    def refused(
        self,
        message_id: int,
        door: str,
        from_uid: str,
        channel: tuple[str, int],
        at: float,
        code: int,
        text: str,
    ) -> None:
        """Note a message that was refused without a plugin's doing. `text` may be empty where the
        code says it all."""
        self.add((message_id, door, from_uid, *channel, None, 0.0, at, None, None, code, text))
        self.tidy()

    def tidy(self) -> None:
        """Pack the entries once there are enough, and drop what is too old."""
        recent = self._recent
        if len(recent) < self._block:
            return
        self._blocks.append((len(recent), _encode(recent)))
        self._packed += len(recent)
        recent.clear()
        while self._packed - self._blocks[0][0] >= self._size:
            self._packed -= self._blocks.popleft()[0]

    def find(self, message_id: int) -> list[Heard]:
        """Return the entries of one message in the order of the decisions."""
        needle = _encode(message_id)
        recent = [entry for entry in self._recent if entry[0] == message_id]
        return [
            heard
            for block in (*(block for _, block in self._blocks), _encode(recent))
            if needle in block
            for heard in _decode(block)
            if heard.message_id == message_id
        ]


def still_open(message_id: int, asked: Iterable[object], parked: Iterable[Passage]) -> list[Heard]:
    """Return the entry of a message that a plugin has (it is among `asked`, with look-ups) or that
    is parked."""
    waiting = (each for each in asked if isinstance(each, Passage))
    return [_entry(p, parked=False) for p in waiting if p.message.message_id == message_id] + [
        _entry(p, parked=True) for p in parked if p.message.message_id == message_id
    ]


def _entry(passage: Passage, *, parked: bool) -> Heard:
    m = passage.message
    heard = Heard(
        message_id=m.message_id,
        door=passage.origin.door,
        from_uid=m.from_uid,
        channel_id=m.channel_id,
        channel_type=m.channel_type,
        plugin=msgspec.msgpack.decode(passage.line.stamp, type=Asked),
        called_at=passage.called_at,
        parked=parked,
    )
    if parked:
        heard.answered_at = passage.failed_at
        heard.outcome, heard.policy = passage.failure.outcome, Policy.HOLD
        heard.text = passage.failure.detail
    return heard
