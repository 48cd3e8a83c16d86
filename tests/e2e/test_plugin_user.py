"""Everything around plugins works for an ordinary user, from install to logs, and for root."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.attacks.as_user import USER, user_command, why_not

pytestmark = pytest.mark.e2e

FLOW = [sys.executable, "-m", "tests.e2e.user_flow"]
ROOT = Path(__file__).parents[2]


def test_the_flow_works_as_whoever_runs_the_tests() -> None:
    done = subprocess.run(FLOW, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "done as" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(why_not() != "", reason=why_not())
def test_the_flow_works_as_an_ordinary_user() -> None:
    # A short path, which a socket's needs to be; pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory(prefix="wkuser-") as scratch:
        command = user_command(FLOW, Path(scratch), {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert f"done as {USER}" in done.stdout, done.stdout + done.stderr
