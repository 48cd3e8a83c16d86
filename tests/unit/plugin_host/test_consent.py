"""What is agreed to, when an upgrade waits, and what may replace what."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from wkhost.errors import PluginError
from wkhost.hooks.verdict import Policy
from wkhost.link.contract import InstallPlugin
from wkhost.plugin_host import consent, releases
from wkhost.plugin_host.capability import names
from wkhost.plugin_host.manifest import Capabilities, HookSpec, Manifest
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.registry import Entry, Release, Snapshot

SEND = {"send": HookSpec(policy=Policy.CLOSED)}
DIGEST = "d" * 64


def package(version: str = "1.0.0", **capabilities: object) -> Package:
    asks = Capabilities(**capabilities)  # type: ignore[arg-type]
    manifest = Manifest(no="a", version=version, main="m.py", hooks=SEND, capabilities=asks)
    return Package(manifest, Path("/x"), DIGEST, "/src/a")


def entry(version: str = "1.0.0", *granted: str, **fields: object) -> Entry:
    values = {"digest": "old", "folder": "f", "source": "/src/a", "granted": granted, **fields}
    return Entry(no="a", version=version, **values)  # type: ignore[arg-type]


def request(**fields: object) -> InstallPlugin:
    return InstallPlugin("/src/a", **{"digest": f"sha256:{DIGEST}", **fields})  # type: ignore[arg-type]


def test_a_first_install_needs_the_digest_and_all_that_is_asked_for() -> None:
    found = consent.decide(request(), package(kv_bytes=10), None)
    assert found.granted == ("hook.send", "kv_bytes=10")
    with pytest.raises(PluginError, match="expected the digest"):
        consent.decide(request(digest=""), package(), None)
    with pytest.raises(PluginError, match="nothing was installed"):
        consent.decide(request(digest="sha256:" + "e" * 64), package(), None)
    with pytest.raises(PluginError, match="asks for more than was granted: kv_bytes=10"):
        consent.decide(request(granted=["hook.send"]), package(kv_bytes=10), None)
    with pytest.raises(PluginError, match="does not ask for 'users_read'"):
        consent.decide(request(granted=["users_read"]), package(), None)


def test_what_is_withheld_is_denied_for_good() -> None:
    found = consent.decide(request(withhold=["kv_bytes"]), package(kv_bytes=10), None)
    assert found.denied == ("kv_bytes=10",)
    assert found.waiting == ()


def test_an_upgrade_keeps_what_was_granted_and_waits_for_more() -> None:
    before = entry("1.0.0", "hook.send", "kv_bytes=10", "token")
    same = consent.decide(request(granted=[]), package("1.1.0", kv_bytes=10), before)
    assert (same.waiting, same.granted) == ((), ("hook.send", "kv_bytes=10"))
    less = consent.decide(request(granted=[]), package("1.1.0", kv_bytes=5), before)
    assert less.waiting == ()
    assert "token" not in less.granted, "it must not lie in wait for a later version"
    more = consent.decide(
        request(granted=[]), package("1.1.0", kv_bytes=11, users_read=True), before
    )
    assert names(more.waiting) == ("users_read", "kv_bytes=11")
    denied = entry("1.0.0", "hook.send", denied=("users_read", "kv_bytes"))
    settled = consent.decide(
        request(granted=[]), package("1.1.0", kv_bytes=11, users_read=True), denied
    )
    assert settled.waiting == ()


def test_another_source_and_an_older_version_need_a_word() -> None:
    before = entry("1.10.0", "hook.send")
    with pytest.raises(PluginError, match=r"1\.9\.0 is older than the installed 1\.10\.0"):
        consent.decide(request(), package("1.9.0"), before)
    consent.decide(request(allow_downgrade=True), package("1.9.0"), before)
    other = request()
    other.source = "/elsewhere/a"
    with pytest.raises(PluginError, match=r"installed from /src, not from /elsewhere"):
        consent.decide(other, package("1.10.0"), before)
    other.replace_source = True
    consent.decide(other, package("1.10.0"), before)
    named = InstallPlugin("moderation")
    with pytest.raises(PluginError, match="not from built-in moderation"):
        consent.decide(named, package("2"), before)


def test_versions_sort_as_people_think() -> None:
    ordered = ["0.9", "1.0-alpha", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1", "1.2", "1.10", "2"]
    for older, newer in pairwise(ordered):
        assert consent.version_key(older) < consent.version_key(newer), (older, newer)
    assert consent.version_key("1.0") == consent.version_key("1.0.0") == consent.version_key("1")
    assert consent.version_key("1.0+build5") == consent.version_key("1.0")


def release(version: str, granted: tuple[str, ...] | None = ()) -> Release:
    return Release(version, f"digest-{version}", f"a/{version}", "/src/a", granted)


def installed(*versions: str) -> Entry:
    made = entry(versions[-1], digest=f"digest-{versions[-1]}", space=len(versions))
    snapshots = tuple(
        Snapshot(f"{v}-1", v, f"digest-{v}", 0.0, "", number, {"v": v}, 1, {})
        for number, v in enumerate(versions[:-1])
    )
    return msgspec.structs.replace(
        made, releases=tuple(map(release, versions)), snapshots=snapshots, last_space=9
    )


def test_the_way_back_leads_to_what_was_left_last() -> None:
    made = installed("1", "2", "3")
    found, snapshot = releases.way_back(made, "")
    assert (found.version, snapshot and snapshot.name) == ("2", "2-1")
    found, snapshot = releases.way_back(made, "1")
    assert (found.version, snapshot and snapshot.name) == ("1", "1-1")
    assert releases.way_back(made, "1-1")[0].version == "1"
    for wanted, text in (("3", "in use"), ("7", "no version '7'"), ("", "no version to go back")):
        with pytest.raises(PluginError, match=text):
            releases.way_back(made if wanted else installed("1"), wanted)
    waiting = releases.with_release(made, release("4", None))
    with pytest.raises(PluginError, match="nobody has agreed to 4"):
        releases.way_back(waiting, "4")


def test_going_back_uses_a_snapshot_up_and_makes_another() -> None:
    made = installed("1", "2")
    _, snapshot = releases.way_back(made, "")
    back = releases.switched(made, snapshot, why="x", cursors={"persist_after": 5}, copied=True)
    assert (back.space, back.config) == (0, {"v": "1"})
    assert back.config_number > made.config_number
    (kept,) = back.snapshots
    assert (kept.version, kept.space, kept.cursors) == ("2", 2, {"persist_after": 5})


def test_a_change_without_a_server_is_remembered_until_the_values_were_copied() -> None:
    made = installed("1", "2")
    changed = releases.switched(made, None, why="x", cursors={}, copied=False)
    assert (changed.space, changed.copy_from, changed.last_space) == (10, 2, 10)
    again = releases.switched(changed, None, why="x", cursors={}, copied=False)
    assert (again.space, again.copy_from) == (11, 2)
    assert len(again.snapshots) == len(changed.snapshots), "an empty space is no snapshot"


def test_pruning_keeps_what_can_be_gone_back_to() -> None:
    made = installed(*map(str, range(1, 12)))
    kept, gone, spaces = releases.pruned(made)
    assert [each.version for each in kept.snapshots] == ["6", "7", "8", "9", "10"]
    assert [each.version for each in kept.releases] == ["6", "7", "8", "9", "10", "11"]
    assert [each.version for each in gone] == ["1", "2", "3", "4", "5"]
    assert spaces == [0, 1, 2, 3, 4]
    assert releases.pruned(kept)[1:] == ([], [])
