"""What is counted per plugin, hook and version, and the breaker of each generation.

On the way of a message these are plain numbers; exporters read them when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec
import structlog

from wkhost.hooks.breaker import DEFAULT_RULES, Breaker, BreakerRules
from wkhost.hooks.verdict import Continue, Failure, Outcome, Refuse

BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.0),
)
"""Upper bounds of the buckets of call durations, in seconds; one more bucket holds the rest."""
MAX_VERSIONS = 8
"""Versions of one plugin whose counts are kept; the oldest give way."""

log = structlog.get_logger(__name__)


class CallRecord:
    """Totals of one plugin's version at one hook, over all its generations.

    `durations` counts calls per bucket of `BOUNDS_S` (not cumulative), `total_s` adds them up; both
    hold calls that reached the plugin. `outcomes` counts by outcome, calls that the policy decided
    without asking included; `short_circuits` counts those that an open breaker kept away.
    """

    __slots__ = (
        "continued",
        "durations",
        "hook",
        "no",
        "opened",
        "others",
        "short_circuits",
        "total_s",
        "version",
    )

    def __init__(self, no: str, hook: str, version: str) -> None:
        self.no = no
        self.hook = hook
        self.version = version
        self.durations = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0
        self.continued = 0
        self.others = dict.fromkeys(Outcome, 0)
        self.short_circuits = 0
        self.opened = 0
        """Times a breaker opened."""

    @property
    def verdicts(self) -> int:
        others = self.others
        return self.continued + others[Outcome.REPLACE] + others[Outcome.REFUSE]

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """Counts of all six outcomes."""
        return {**self.others, Outcome.CONTINUE: self.continued}

    def count(self, answer: object) -> None:
        """Count the answer of a call that no message waits for."""
        if isinstance(answer, Continue):
            self.continued += 1
        elif isinstance(answer, Refuse | Failure):
            self.others[answer.outcome] += 1
        else:
            self.others[Outcome.REPLACE] += 1

    def took(self, seconds: float) -> None:
        self.durations[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class Asked(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Which process of which plugin had a message."""

    no: str
    version: str
    generation: int


class HookLine:
    """One generation of a plugin at one hook: its breaker, and where its calls are counted."""

    __slots__ = ("breaker", "generation", "record", "stamp")

    def __init__(self, record: CallRecord, generation: int, rules: BreakerRules) -> None:
        self.record = record
        self.generation = generation
        asked = Asked(record.no, record.version, generation)
        self.stamp = msgspec.Raw(msgspec.msgpack.encode(asked))
        """Who this is, as the journal writes it."""
        self.breaker = Breaker(rules, self._changed)

    def failed(self, call_id: int, outcome: Outcome, now: float) -> None:
        """A call that was issued has failed."""
        self.breaker.failed(call_id, outcome, now, self.record.verdicts)

    def _changed(self, breaker: Breaker) -> None:
        record = self.record
        state = breaker.state.name.lower()
        if state == "open":
            record.opened += 1
        log.warning(
            "plugin_breaker",
            plugin=record.no,
            hook=record.hook,
            generation=self.generation,
            state=state,
            cause=breaker.cause.value,
            pause_s=breaker.pause_s,
        )


class HookLines(dict[str, HookLine]):
    """The lines of one generation by hook, made when they are first needed."""

    def __init__(self, records: CallRecords, no: str, version: str, generation: int) -> None:
        super().__init__()
        self.no = no
        self.version = version
        self.generation = generation
        self._records = records

    def __missing__(self, hook: str) -> HookLine:
        record = self._records.record(self.no, hook, self.version)
        line = self[hook] = HookLine(record, self.generation, self._records.rules)
        return line


class CallRecords:
    """All records. A plugin's versions are few and known to the host, so the set is bounded."""

    def __init__(self, rules: BreakerRules = DEFAULT_RULES) -> None:
        self.rules = rules
        self._of: dict[str, dict[str, dict[str, CallRecord]]] = {}

    def lines(self, no: str, version: str, generation: int) -> HookLines:
        """Return the lines of a new generation, with closed breakers."""
        return HookLines(self, no, version, generation)

    def record(self, no: str, hook: str, version: str) -> CallRecord:
        versions = self._of.setdefault(no, {})
        hooks = versions.get(version)
        if hooks is None:
            while len(versions) >= MAX_VERSIONS:
                del versions[next(iter(versions))]
            hooks = versions[version] = {}
        if hook not in hooks:
            hooks[hook] = CallRecord(no, hook, version)
        return hooks[hook]

    def of(self, no: str) -> list[CallRecord]:
        """Return the records of a plugin, oldest version first."""
        versions = self._of.get(no, {}).values()
        return [record for hooks in versions for record in hooks.values()]

    def counts(self, no: str) -> dict[str, dict[str, int]]:
        """Return hook -> outcome -> count over all versions; outcomes that never came are left
        out."""
        counts: dict[str, dict[str, int]] = {}
        for record in self.of(no):
            for outcome, count in record.outcomes.items():
                if count:
                    of_hook = counts.setdefault(record.hook, {})
                    of_hook[outcome] = of_hook.get(outcome, 0) + count
        return counts

    def forget(self, no: str) -> None:
        """Drop the records of an uninstalled plugin."""
        self._of.pop(no, None)
