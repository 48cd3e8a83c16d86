"""How often a plugin died of late, and when that is too often."""

from __future__ import annotations

from collections import deque

from wkhost.plugin_host.rules import Rules


class Crashes:
    """The deaths of one plugin within the rules' window. `total` counts all there ever were."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._at: deque[float] = deque()
        self.total = 0

    def note(self, now: float) -> str:
        """Count a death at `now`; return in words how often it died if that is too often."""
        rules, at = self._rules, self._at
        self.total += 1
        at.append(now)
        while at[0] < now - rules.crash_window_s:
            at.popleft()
        if len(at) < rules.crashes:
            return ""
        often = f"{len(at)} times" if len(at) > 1 else "once"
        return f"died {often} within {rules.crash_window_s:.0f} s"

    def forgive(self) -> None:
        self._at.clear()
