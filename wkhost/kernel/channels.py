"""Channels as the kernel holds them: sequence, permission cache and what is in flight."""

from __future__ import annotations

from collections import OrderedDict

CHANNELS_MAX = 16_384
"""Channels kept; beyond it the one used longest ago goes, unless messages refer to it."""
UNKNOWN_SEQ = -1
REASONS_MAX = 10_000
"""Cached permission answers per channel."""


class ChannelState:
    """One channel. `last_seq` is the newest message_seq given, `UNKNOWN_SEQ` until read.

    `reasons` caches sender -> reason code under `acl_version`. `pins` counts the messages that
    refer to this object: while it is positive there is no second object for the channel.
    """

    __slots__ = (
        "acl_version",
        "channel_id",
        "channel_type",
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
        self.pins = 0

    def __repr__(self) -> str:
        return f"<ChannelState {self.channel_id}/{self.channel_type} seq {self.last_seq}>"


class ChannelTable:
    """The channels in use, the one used longest ago first.

    `acl_version` grows with every change that may alter a permission; cached answers of an older
    version are void.
    """

    def __init__(self) -> None:
        self.acl_version = 0
        self._states: OrderedDict[tuple[str, int], ChannelState] = OrderedDict()

    def get(self, channel_id: str, channel_type: int) -> ChannelState:
        """Return the one state object of a channel."""
        states = self._states
        key = (channel_id, channel_type)
        state = states.get(key)
        if state is not None:
            states.move_to_end(key)
            return state
        state = states[key] = ChannelState(channel_id, channel_type)
        if len(states) > CHANNELS_MAX:
            self._drop_some()
        return state

    def _drop_some(self) -> None:
        """Drop up to two of the oldest, so that the table shrinks again after a burst of pins."""
        states = self._states
        for _ in range(2):
            oldest = next(iter(states))
            if states[oldest].pins:
                states.move_to_end(oldest)
            else:
                del states[oldest]

    def permissions_changed(self) -> None:
        """Void every cached permission answer."""
        self.acl_version += 1

    def forget_sequences(self) -> None:
        """After a failed commit: what was given but not made durable must be read again."""
        for state in self._states.values():
            state.last_seq = UNKNOWN_SEQ

    def __len__(self) -> int:
        return len(self._states)
