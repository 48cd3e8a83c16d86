"""What a load must find true of every message, and the counts of what was not."""

from __future__ import annotations

from typing import Any

import msgspec


class Violations(msgspec.Struct):
    """Counts; all are 0 when the server kept its promises."""

    missing_deliveries: int = 0
    """Acknowledged, but not at every online recipient when the drain ended."""
    missing_sendacks: int = 0
    """Sent, but neither acknowledged nor refused when the drain ended."""
    unexpected_sendacks: int = 0
    """For a message that is not in flight."""
    duplicate_deliveries: int = 0
    """The sender's last message came once more."""
    disordered_deliveries: int = 0
    """A message came after a later one of its sender, for the first or another time."""
    message_seq_not_ascending: int = 0
    """Per channel, at one recipient."""
    unexpected_deliveries: int = 0
    """Never sent, or refused."""
    ids_disagree: int = 0
    """SENDACK and RECV name another message_id or message_seq."""
    payload_changed: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))

    def found(self) -> dict[str, Any]:
        """Return those that are not 0."""
        return {name: count for name, count in msgspec.structs.asdict(self).items() if count}
