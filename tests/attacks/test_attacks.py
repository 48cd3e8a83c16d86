"""Every attack succeeds without the sandbox, and fails with it, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from tests.attacks.as_user import setuid_id, user_command, why_not
from tests.attacks.catalogue import ATTACKS
from tests.attacks.matrix import BUSY, CONFIGURATIONS, Outcomes, escapes, mistakes, run
from wkhost.plugin_host.sandbox.ability import find_ability

ROOT = os.geteuid() == 0
GROUPS = find_ability().groups is not None
FULL = "full+cgroup" if GROUPS else "full"
REAL = FULL.replace("full", "real")

GETS_THROUGH: dict[str, set[str]] = {
    "full": set(),
    "full+egress": set(),
    "real": set(),
    "full+cgroup": set(),
    "real+cgroup": set(),
    "full+subprocesses": {"R04", "K02", "K16"},
    "full+cgroup+subprocesses": {"K02", "K16"},
}
"""Known escapes: memfd without a control group; executing is not gaining anything."""
NEVER_BITES = {"F14", "F17", "K01", "K12", "N12"}
"""The kernel, the machine or a missing part may refuse these even to a process without limits."""
NEEDS_ROOT = {
    *("F01", "F15", "F16", "N09", "P10", "R11", "R12", "K03", "K04", "K08", "K09", "K14"),
    *("N02", "N03", "N06"),  # a machine without such an address
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Both ends, as whoever runs the tests, and the stronger one for a plugin as servers have."""
    with tempfile.TemporaryDirectory(prefix="wkhost-attacks-") as name:
        return trio.run(run, ("none", FULL, REAL), list(ATTACKS), Path(name))


@pytest.fixture(scope="module")
def user() -> Outcomes:
    """The same as an ordinary user, where root runs the tests."""
    return as_user(["full"], list(ATTACKS))


def as_user(configurations: list[str], names: list[str], *more: str) -> Outcomes:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="wkhost-user-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        scratch = folder / "scratch"
        scratch.mkdir()
        helper = {"WK_ATTACK_SETUID": str(setuid_id(folder))}
        words = [sys.executable, "-m", "tests.attacks.matrix", *configurations, *more]
        command = user_command([*words, "--attacks", ",".join(names)], scratch, helper)
        done = subprocess.run(command, capture_output=True, check=False, timeout=400)
        assert done.stdout, done.stderr.decode()
        found: Outcomes = json.loads(done.stdout)
        return found


def check(outcomes: Outcomes) -> None:
    assert mistakes(outcomes) == []
    for configuration, found in outcomes.items():
        if configuration in GETS_THROUGH:
            assert escapes(found) - GETS_THROUGH[configuration] == set(), configuration


def test_every_attack_bites_without_a_sandbox(here: Outcomes) -> None:
    found = here["none"]
    unproven = {name for name in found if found[name] not in ("escaped", BUSY)}
    assert unproven - NEVER_BITES - (set() if ROOT else NEEDS_ROOT) == set()
    assert [each for each in mistakes(here) if each.startswith("none")] == []


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_through(name: str, here: Outcomes) -> None:
    if name in GETS_THROUGH[FULL]:
        pytest.skip("known to get through; see docs/security.md")
    assert here[FULL][name] in ATTACKS[name].blocked


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_through_where_environment_data_and_way_out_are_real(
    name: str, here: Outcomes
) -> None:
    if name in GETS_THROUGH[REAL]:
        pytest.skip("known to get through; see docs/security.md")
    assert here[REAL][name] in ATTACKS[name].blocked


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_through_as_an_ordinary_user(name: str, user: Outcomes) -> None:
    if name in GETS_THROUGH["full"]:
        pytest.skip("known to get through; see docs/security.md")
    assert user["full"][name] in ATTACKS[name].blocked


def test_what_only_a_user_can_show_bites_as_a_user() -> None:
    found = as_user(["none"], ["K01", "F02", "K05", "R01"])
    assert escapes(found["none"]) == {"K01", "F02", "K05", "R01"}


@pytest.mark.parametrize("name", ["R08", "R09"])
def test_a_real_data_folder_has_a_quota(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = trio.run(run, (FULL,), [name], tmp_path, "data")
    assert found[FULL][name] == "SIGKILL"


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_whole_matrix(configuration: str) -> None:
    if "cgroup" in configuration and not GROUPS:
        pytest.skip("no control group can be made here")
    with tempfile.TemporaryDirectory(prefix="wkhost-attacks-") as name:
        check(trio.run(run, (configuration,), list(ATTACKS), Path(name)))


@pytest.mark.slow
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if "cgroup" not in c])
def test_the_whole_matrix_as_an_ordinary_user(configuration: str) -> None:
    check(as_user([configuration], list(ATTACKS)))


@pytest.mark.slow
def test_a_real_data_folder_has_a_quota_as_an_ordinary_user() -> None:
    found = as_user(["full"], ["R07", "R08", "R09"], "--scratch", "data")
    assert found["full"] == {"R07": "EFBIG", "R08": "SIGKILL", "R09": "SIGKILL"}
