"""Installed versions, snapshots and rights of a plugin, in the structs of the link's contract."""

from __future__ import annotations

from pathlib import Path

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host.capability import asked, is_denied, largest, missing, names
from wkhost.plugin_host.consent import digest_text
from wkhost.plugin_host.manifest import Manifest, parse_manifest, read_manifest
from wkhost.plugin_host.registry import Entry, Release


def versions(entry: Entry, plugins_dir: Path) -> c.PluginVersions:
    """Describe an entry. Blocks: it reads the manifests of versions that wait."""
    return c.PluginVersions(
        no=entry.no,
        releases=[_release(entry, release, plugins_dir) for release in entry.releases],
        snapshots=[
            c.PluginSnapshot(each.name, each.version, each.taken_at, each.why)
            for each in entry.snapshots
        ],
        rights=_rights(entry),
    )


def _release(entry: Entry, release: Release, plugins_dir: Path) -> c.PluginRelease:
    waiting: list[c.CapabilityAsk] = []
    if release.granted is None:
        try:
            manifest = read_manifest(plugins_dir / release.folder)
        except PluginError:
            manifest = Manifest(no=entry.no, version=release.version)
        waiting = [
            c.CapabilityAsk(each.name, each.text, each.dangerous, settled=False)
            for each in missing(manifest, entry.granted or (), entry.denied)
        ]
    return c.PluginRelease(
        version=release.version,
        digest=digest_text(release.digest),
        source=release.source,
        installed_at=release.installed_at,
        in_use=release.digest == entry.digest,
        waiting=waiting,
        withdrawn=release.withdrawn,
    )


def _rights(entry: Entry) -> list[c.PluginRight]:
    if not entry.manifest:
        return []
    manifest = parse_manifest(entry.manifest.encode())
    granted = entry.granted or ()
    lacks = set(names(missing(manifest, granted)))
    found = []
    for each in asked(manifest):
        stem, equals, _ = each.name.partition("=")
        some = bool(equals) and largest(stem, granted) > 0
        has = (each.name not in lacks or some) and not is_denied(each.name, entry.denied)
        found.append(c.PluginRight(each.name, each.text, each.dangerous, has))
    return found
