"""What is counted of each plugin's way out, over all its generations.

Refusals are counted by reasons that the host knows and connections by entries of the allow-list,
never by what a plugin asked for.
"""

from __future__ import annotations

REFUSALS = (
    *("wrong_peer", "too_many", "bad_request", "not_listed"),
    *("unresolved", "address_refused", "unreachable"),
)
"""Why a connection got no tunnel."""
ENDINGS = ("idle", "broken")
"""How a connection ended other than by being closed."""


class EgressRecord:
    """One plugin's counts. `open` is connections now, tunnels or not yet; bytes are those that the
    other side took: `sent_bytes` left the plugin, `received_bytes` came to it."""

    __slots__ = ("accepted", "ended", "open", "received_bytes", "refused", "sent_bytes")

    def __init__(self) -> None:
        self.open = 0
        self.accepted: dict[str, int] = {}
        """Tunnels by entry of the allow-list."""
        self.refused = dict.fromkeys(REFUSALS, 0)
        self.ended = dict.fromkeys(ENDINGS, 0)
        self.sent_bytes = 0
        self.received_bytes = 0

    def accept(self, target: str) -> None:
        self.accepted[target] = self.accepted.get(target, 0) + 1


class EgressRecords:
    """The records of all plugins that ever had a way out."""

    def __init__(self) -> None:
        self._of: dict[str, EgressRecord] = {}

    def of(self, no: str) -> EgressRecord:
        return self._of.setdefault(no, EgressRecord())

    def find(self, no: str) -> EgressRecord | None:
        """Return the record of a plugin, None if it never had a way out."""
        return self._of.get(no)

    def forget(self, no: str) -> None:
        """Drop the record of an uninstalled plugin."""
        self._of.pop(no, None)
