"""Versions of a plugin side by side, and what is kept of those that were left.

Pure changes of a registry entry. A version that takes over gets a space of its own in the key-value
store, with a copy of the values; the space that it leaves becomes part of a snapshot, together
with the settings and the observers' places. Going back makes a snapshot's space the current one
again, so it costs nothing and loses nothing: what is left then becomes a snapshot in its turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.consent import Consent
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.registry import Entry, Release, Snapshot

MAX_RELEASES = 5
MAX_SNAPSHOTS = 5


def release_of(package: Package, plugins_dir: Path, granted: tuple[str, ...] | None) -> Release:
    return Release(
        version=package.manifest.version,
        digest=package.digest,
        folder=str(package.folder.relative_to(plugins_dir)),
        source=package.source,
        granted=granted,
        installed_at=time.time(),
    )


def with_release(entry: Entry, release: Release) -> Entry:
    """Note a version; one of the same digest is replaced."""
    others = tuple(each for each in entry.releases if each.digest != release.digest)
    return msgspec.structs.replace(entry, releases=(*others, release))


def using(entry: Entry, release: Release, consent: Consent, manifest_text: str) -> Entry:
    """Make `release` the installed version, with what was agreed to."""
    return msgspec.structs.replace(
        with_release(entry, release),
        version=release.version,
        digest=release.digest,
        folder=release.folder,
        source=release.source,
        granted=consent.granted,
        denied=consent.denied,
        manifest=manifest_text,
        quarantine=None,
    )


def left(entry: Entry, why: str, cursors: Mapping[str, int]) -> Snapshot:
    """Return the snapshot of what `entry` has now."""
    taken = {snapshot.name for snapshot in entry.snapshots}
    number = 1
    while f"{entry.version}-{number}" in taken:
        number += 1
    return Snapshot(
        name=f"{entry.version}-{number}",
        version=entry.version,
        digest=entry.digest,
        taken_at=time.time(),
        why=why,
        space=entry.space,
        config=entry.config,
        config_number=entry.config_number,
        cursors=dict(cursors),
    )


def find_release(entry: Entry, wanted: str) -> Release:
    """Return the newest release of that version or digest. Raises PluginError."""
    digest = wanted.removeprefix("sha256:")
    for release in reversed(entry.releases):
        if wanted == release.version or (len(digest) >= 8 and release.digest.startswith(digest)):
            return release
    known = ", ".join(release.version for release in entry.releases) or "none"
    raise PluginError(f"{entry.no}: there is no version {wanted[:80]!a}, expected one of: {known}")


def way_back(entry: Entry, wanted: str) -> tuple[Release, Snapshot | None]:
    """Return where a rollback leads: the version left last, or the version or snapshot `wanted`.

    Raises PluginError when there is none, or when nobody had agreed to it.
    """
    named = [snapshot for snapshot in entry.snapshots if snapshot.name == wanted]
    if named:
        release = _release_by_digest(entry, named[0].digest)
        snapshot: Snapshot | None = named[0]
    elif wanted:
        release = find_release(entry, wanted)
        snapshot = _newest_snapshot(entry, release.digest)
    else:
        release, snapshot = _last_left(entry)
    if release.digest == entry.digest and not named:
        raise PluginError(f"{entry.no}: {release.version} is the version in use")
    if release.granted is None:
        raise PluginError(
            f"{entry.no}: nobody has agreed to {release.version}; `wkhost plugin upgrade` asks"
        )
    return release, snapshot


def _last_left(entry: Entry) -> tuple[Release, Snapshot | None]:
    for snapshot in reversed(entry.snapshots):
        if snapshot.digest != entry.digest:
            return _release_by_digest(entry, snapshot.digest), snapshot
    agreed = [r for r in entry.releases if r.granted is not None and r.digest != entry.digest]
    if not agreed:
        raise PluginError(f"{entry.no}: there is no version to go back to")
    return agreed[-1], None


def _release_by_digest(entry: Entry, digest: str) -> Release:
    for release in entry.releases:
        if release.digest == digest:
            return release
    raise PluginError(f"{entry.no}: the version of that snapshot is not installed any more")


def _newest_snapshot(entry: Entry, digest: str) -> Snapshot | None:
    found = [snapshot for snapshot in entry.snapshots if snapshot.digest == digest]
    return found[-1] if found else None


def switched(
    entry: Entry,
    snapshot: Snapshot | None,
    *,
    why: str,
    cursors: Mapping[str, int],
    copied: bool,
) -> Entry:
    """Return the entry with what the version in use had as a snapshot, and with what the next one
    has: that of `snapshot`, which is used up, or a space of its own. `copied`: its values are there
    already."""
    kept = tuple(each for each in entry.snapshots if each is not snapshot and each != snapshot)
    if entry.copy_from is None:
        kept = (*kept, left(entry, why, cursors))
    entry = msgspec.structs.replace(entry, snapshots=kept)
    if snapshot is None:
        copy_from = entry.space if entry.copy_from is None else entry.copy_from
        return msgspec.structs.replace(
            entry,
            last_space=entry.last_space + 1,
            space=entry.last_space + 1,
            copy_from=None if copied else copy_from,
        )
    return msgspec.structs.replace(
        entry,
        space=snapshot.space,
        copy_from=None,
        config=snapshot.config,
        # The numbers of configurations only grow: a process knows each by its number.
        config_number=max(entry.config_number, snapshot.config_number) + 1,
    )


def withdraw(entry: Entry, digest: str, why: str) -> Entry:
    """Note at a version why it was taken back."""
    releases = tuple(
        msgspec.structs.replace(each, withdrawn=why) if each.digest == digest else each
        for each in entry.releases
    )
    return msgspec.structs.replace(entry, releases=releases)


def pruned(entry: Entry) -> tuple[Entry, list[Release], list[int]]:
    """Return the entry within its bounds, the releases whose folders and the spaces whose values
    are to be removed. The version in use and its space always stay."""
    snapshots = entry.snapshots[-MAX_SNAPSHOTS:]
    needed = {entry.digest, *(snapshot.digest for snapshot in snapshots)}
    spare = [release for release in entry.releases if release.digest not in needed]
    room = max(0, MAX_RELEASES - (len(entry.releases) - len(spare)))
    gone = spare[: len(spare) - room] if room < len(spare) else []
    spaces_kept = {entry.space, *(snapshot.space for snapshot in snapshots)}
    spaces = sorted({s.space for s in entry.snapshots[:-MAX_SNAPSHOTS]} - spaces_kept)
    lost = {release.digest for release in gone}
    releases = tuple(release for release in entry.releases if release.digest not in lost)
    return msgspec.structs.replace(entry, releases=releases, snapshots=snapshots), gone, spaces
