"""What every measurement reports besides its figures."""

from __future__ import annotations

from typing import Any

import msgspec

from wkhost.bench.load import Tally
from wkhost.bench.machine import Build, Machine, describe_build, describe_machine
from wkhost.bench.samples import ratio
from wkhost.errors import ReasonCode


class Report(msgspec.Struct, frozen=True):
    """One measurement. `ok` is False when anything was found that must not be."""

    command: str
    ok: bool
    wkhost: Build
    machine: Machine
    options: dict[str, Any]
    results: list[Any]


class Surroundings(msgspec.Struct, frozen=True):
    """Machine and build, looked at before the load."""

    build: Build
    machine: Machine

    def report(self, command: str, options: msgspec.Struct, results: list[Any]) -> Report:
        """Make the report; each result has a field `ok`."""
        return Report(
            command=command,
            ok=all(result.ok for result in results),
            wkhost=self.build,
            machine=self.machine,
            options=msgspec.to_builtins(options),
            results=results,
        )


def look_around(folder: Any) -> Surroundings:
    """Describe machine and build; `folder` is where data will be kept."""
    return Surroundings(describe_build(), describe_machine(folder))


class Outcome(msgspec.Struct, frozen=True):
    """What became of the messages of a load."""

    sent: int
    acked: int
    delivered: int
    reasons: dict[str, int]
    """Count by reason code; warm-up and drain included, as in `violations`."""
    violations: dict[str, int]
    """Those that were found; none is the rule."""
    due_but_unsent: int
    """Due in an open loop, but its connection had too much in flight."""
    generator_cores: float
    """Used by the load generator itself; near 1 it is what limits the load."""

    @property
    def ok(self) -> bool:
        return not self.violations and not set(self.reasons) - {str(int(ReasonCode.SUCCESS))}


def outcome_of(tally: Tally) -> Outcome:
    return Outcome(
        sent=tally.sent,
        acked=tally.acked,
        delivered=tally.delivered,
        reasons={str(code): count for code, count in sorted(tally.reasons.items())},
        violations=tally.violations.found(),
        due_but_unsent=tally.due_but_unsent,
        generator_cores=ratio(tally.own_cpu_s, tally.seconds),
    )
