"""Channels as the kernel holds them: sequence, permission cache and what is in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wkhost.kernel.inflight import Inflight

GENERATION_SIZE = 8192
"""Channels in the young generation before a rotation; a rotation looks at as many."""
UNKNOWN_SEQ = -1
REASONS_MAX = 10_000
"""Cached permission answers per channel."""


class ChannelState:
    """One channel. `last_seq` is the newest message_seq given, `UNKNOWN_SEQ` until read.

    `reasons` caches sender -> reason code under `acl_version`. `inflight` finds messages by
    (from_uid, client_msg_no) until they are durable or refused. `pins` counts the messages that
    refer to this object: while it is positive there is no second object for the channel.
    """

    __slots__ = (
        "acl_version",
        "channel_id",
        "channel_type",
        "inflight",
        "last_seq",
        "pins",
        "reasons",
    )

    def __init__(self, channel_id: str, channel_type: int) -> None:
        self.channel_id = channel_id
        self.channel_type = channel_type
        self.last_seq = UNKNOWN_SEQ
        self.acl_version = -1
        self.reasons: dict[str, int] = {}
        self.inflight: dict[tuple[str, str], Inflight] = {}
        self.pins = 0

    def __repr__(self) -> str:
        return f"<ChannelState {self.channel_id}/{self.channel_type} seq {self.last_seq}>"


class ChannelTable:
    """The channels in use, in two generations: what a whole generation did not use is dropped.

    `acl_version` grows with every change that may alter a permission; cached answers of an older
    version are void.
    """

    def __init__(self) -> None:
        self.acl_version = 0
        self._young: dict[tuple[str, int], ChannelState] = {}
        self._old: dict[tuple[str, int], ChannelState] = {}

    def get(self, channel_id: str, channel_type: int) -> ChannelState:
        """Return the one state object of a channel."""
        key = (channel_id, channel_type)
        state = self._young.get(key)
        if state is None:
            state = self._old.pop(key, None) or ChannelState(channel_id, channel_type)
            if len(self._young) >= GENERATION_SIZE:
                self._rotate()
            self._young[key] = state
        return state

    def _rotate(self) -> None:
        """Drop what was not used lately. What `get` gave last stays for another generation."""
        pinned = {key: state for key, state in self._old.items() if state.pins}
        self._old = self._young
        self._young = pinned

    def permissions_changed(self) -> None:
        """Void every cached permission answer."""
        self.acl_version += 1

    def forget_sequences(self) -> None:
        """After a failed commit: what was given but not made durable must be read again."""
        for generation in (self._young, self._old):
            for state in generation.values():
                state.last_seq = UNKNOWN_SEQ

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
