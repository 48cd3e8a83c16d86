"""`python -m tests.attacks.matrix CONFIGURATION...`: run attacks, print the outcomes as JSON.

`--attacks F01,F02` picks some, `--scratch data` aims the disk attacks at the data folder,
`--table` prints for people.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio

from tests.attacks.arena import Arena
from tests.attacks.catalogue import ATTACKS
from tests.attacks.targets import targets

CONFIGURATIONS = (
    *("none", "hygiene", "full", "full+subprocesses"),
    *("full+cgroup", "full+cgroup+subprocesses", "full+egress"),
    *("real", "real+cgroup"),
)
BUSY = "busy"
"""A machine without idle time cannot show that an attack bites."""
Outcomes = dict[str, dict[str, str]]


async def run(
    configurations: Sequence[str], names: Sequence[str], folder: Path, scratch: str = "tmp"
) -> Outcomes:
    """Return configuration -> attack -> outcome."""
    folder.chmod(0o755)  # noqa: ASYNC240 - nothing else runs
    with targets(folder) as laid_out:
        return {
            configuration: await Arena(folder, laid_out, configuration, scratch).run(names)
            for configuration in configurations
        }


def mistakes(outcomes: Outcomes) -> list[str]:
    """Return what is neither an escape nor an expected refusal."""
    return [
        f"{configuration} {name}: {outcome}"
        for configuration, found in outcomes.items()
        for name, outcome in found.items()
        if outcome != "escaped" and outcome not in ATTACKS[name].blocked
        if outcome != BUSY or configuration not in ("none", "hygiene")
    ]


def escapes(found: dict[str, str]) -> set[str]:
    return {name for name, outcome in found.items() if outcome == "escaped"}


def table(outcomes: Outcomes) -> str:
    """Return the matrix for people: E escaped, or what stopped it."""
    names = list(next(iter(outcomes.values())))
    heads = list(outcomes)
    lines = ["| attack | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells = ["**E**" if o[name] == "escaped" else o[name] for o in outcomes.values()]
        lines.append(f"| {name} {ATTACKS[name].title} | " + " | ".join(cells) + " |")
    counts = [str(len(escapes(found))) for found in outcomes.values()]
    lines.append(f"| **escapes of {len(names)}** | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configurations", nargs="+", choices=CONFIGURATIONS)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--scratch", choices=("tmp", "data"), default="tmp")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="wkhost-attacks-") as name:
        names = given.attacks.split(",")
        outcomes = trio.run(run, given.configurations, names, Path(name), given.scratch)
    print(table(outcomes) if given.table else json.dumps(outcomes))
    wrong = mistakes(outcomes)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
