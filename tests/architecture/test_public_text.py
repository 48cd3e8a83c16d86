"""The repository speaks of the project alone, and its decision records have one shape."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRIVATE = (
    r"(?<![\w./-])/(?:home|Users|work|workspace|builds)/\w",
    r"/root/\.",
    r"(?<![\w/])\.\./\w+/(?:spec|tools)\b",
    r"://[\w.-]+\.(?:internal|corp|lan)\b",
    r"\b(?:artifactory|nexus\.|codeartifact|jfrog)",
    r"--(?:extra-)?index-url|PIP_INDEX_URL",
)
ADR_HEADINGS = ["## Context", "## Decision", "## Consequences", "## Rejected"]


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    own = Path(__file__).relative_to(ROOT)
    paths = [Path(name) for name in listing.stdout.split("\0") if name]
    return [ROOT / path for path in paths if path != own and (ROOT / path).is_file()]


def test_no_tracked_text_names_a_machine_a_workplace_or_a_registry() -> None:
    pattern = re.compile("|".join(PRIVATE))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            match = pattern.search(line)
            if match:
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


def decisions() -> list[Path]:
    return sorted((ROOT / "docs/adr").glob("*.md"))


def test_decision_records_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in decisions()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("path", decisions(), ids=lambda path: path.stem)
def test_a_decision_record_follows_the_template(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"# {int(path.name[:4])}\. .+", lines[0])
    assert any(re.fullmatch(r"Status: (accepted|superseded by \d{4})", line) for line in lines)
    assert [line for line in lines if line.startswith("## ")] == ADR_HEADINGS
