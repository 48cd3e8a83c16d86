"""What can go wrong in a measurement, as one sentence for people."""

from __future__ import annotations

from wkhost.errors import WkhostError


class BenchError(WkhostError):
    """A measurement could not be made."""
