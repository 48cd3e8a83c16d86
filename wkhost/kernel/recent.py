"""Messages that are not stored, remembered for a while so that a repeat is not sent twice."""

from __future__ import annotations

from collections.abc import Callable

from wkhost.kernel.channels import ChannelState
from wkhost.types import Message

REMEMBER_S = 60.0
ENTRIES_MAX = 100_000
"""Per generation; beyond it the older generation is forgotten early."""

Key = tuple[str, int, str, str]


class RecentSends:
    """Two generations of (channel, from_uid, client_msg_no) -> message_id.

    An entry lives for at least `REMEMBER_S` and less than twice as long, unless there are too many.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._young: dict[Key, int] = {}
        self._old: dict[Key, int] = {}
        self._turned_at = clock()

    def __bool__(self) -> bool:
        return bool(self._young or self._old)

    def remember(self, channel: ChannelState, message: Message) -> None:
        self._turn()
        self._young[_key(channel, message)] = message.message_id

    def find(self, channel: ChannelState, message: Message) -> tuple[int, int] | None:
        """Return (message_id, 0) of the first copy, or None."""
        self._turn()
        key = _key(channel, message)
        message_id = self._young.get(key) or self._old.get(key)
        return None if message_id is None else (message_id, 0)

    def _turn(self) -> None:
        now = self._clock()
        age = now - self._turned_at
        if age < REMEMBER_S and len(self._young) < ENTRIES_MAX:
            return
        self._old = self._young if age < 2 * REMEMBER_S else {}
        self._young = {}
        self._turned_at = now


def _key(channel: ChannelState, message: Message) -> Key:
    return (channel.channel_id, channel.channel_type, message.from_uid, message.client_msg_no)
