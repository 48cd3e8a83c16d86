"""What is installed, and changing it: everything about packages that needs no running plugin.

Used by the plugin host (in a worker thread, since it blocks) and by the CLI while no server runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host import config_store, consent, releases, version_views
from wkhost.plugin_host.capability import is_denied, narrow
from wkhost.plugin_host.config_schema import merge_config, secret_names
from wkhost.plugin_host.consent import Consent
from wkhost.plugin_host.egress_rules import Target
from wkhost.plugin_host.manifest import MANIFEST_NAME, Manifest, parse_manifest, read_manifest
from wkhost.plugin_host.order import order_plugins
from wkhost.plugin_host.package import (
    Package,
    inspect_package,
    install_package,
    remove_stale_staging,
    tree_digest,
)
from wkhost.plugin_host.process import check_imports
from wkhost.plugin_host.registry import Entry, Registry, Release, Snapshot
from wkhost.plugin_host.secret_store import SecretKey, SecretStore


class Staged(msgspec.Struct, frozen=True):
    """A package in its place that is not registered: what was agreed to, what was there before."""

    package: Package
    consent: Consent
    before: Entry | None


class Catalog:
    """The plugins directory: packages and registry. All methods block; errors are PluginError."""

    def __init__(
        self,
        plugins_dir: Path,
        secret_key: SecretKey | None = None,
        egress_allow: Mapping[str, Sequence[Target]] = MappingProxyType({}),
    ) -> None:
        """`egress_allow`: what the operator's configuration lets plugins reach, by number."""
        self.plugins_dir = plugins_dir
        self._egress_allow = egress_allow
        self.registry = Registry(plugins_dir)
        self.secrets = SecretStore(plugins_dir, secret_key or SecretKey(None, plugins_dir))

    def propose(self, source: str) -> c.PluginProposal:
        """Look at a package without installing it."""
        remove_stale_staging(self.plugins_dir)
        package = inspect_package(source, self.plugins_dir)
        return consent.propose(source, package, self.registry.entries().get(package.manifest.no))

    def stage(self, request: c.InstallPlugin) -> Staged:
        """Put the package in its place, if the operator has agreed to it. Nothing is registered."""
        remove_stale_staging(self.plugins_dir)
        entries = self.registry.entries()
        agreed: list[Consent] = []

        def check(package: Package) -> None:
            agreed.append(consent.decide(request, package, entries.get(package.manifest.no)))
            self._check(package.manifest, package.folder)

        package = install_package(request.source, self.plugins_dir, check)
        return Staged(package, agreed[0], entries.get(package.manifest.no))

    def register(self, staged: Staged) -> Entry:
        """Make a staged package the installed one; what the plugin had is kept.

        One that waits for consent is noted beside the installed version, which stays. A new plugin
        is not enabled.
        """
        package, before = staged.package, staged.before
        no, manifest = package.manifest.no, package.manifest
        waits = bool(staged.consent.waiting)
        granted = None if waits else staged.consent.granted
        release = releases.release_of(package, self.plugins_dir, granted)
        if waits:
            return self.registry.update(no, lambda e: releases.with_release(e, release))
        config = {} if before is None else before.config
        merge_config(manifest.schema, manifest.config, config)
        if before is not None and before.digest != package.digest:
            why = f"upgrade to {manifest.version}"
            return self.commit(no, release=release, consent=staged.consent, why=why)
        entry = before or Entry(no=no, version="", digest="", folder="", source="")
        text = _manifest_text(package.folder)
        entry = releases.using(entry, release, staged.consent, text)
        self.registry.put(entry)
        return entry

    def commit(
        self,
        no: str,
        *,
        release: Release,
        consent: Consent,
        why: str,
        snapshot: Snapshot | None = None,
        cursors: Mapping[str, int] | None = None,
        copied: bool = False,
    ) -> Entry:
        """Make another version of an installed plugin the one in use; see `releases.switched`."""
        text = _manifest_text(self.plugins_dir / release.folder)
        manifest = parse_manifest(text.encode())

        def change(entry: Entry) -> Entry:
            entry = releases.switched(
                entry, snapshot, why=why, cursors=cursors or {}, copied=copied
            )
            entry = releases.using(entry, release, consent, text)
            history = config_store.without_secrets(entry.history, manifest)
            return msgspec.structs.replace(entry, history=history)

        return self.registry.update(no, change)

    def install(self, request: c.InstallPlugin) -> Entry:
        """Stage and register; an enabled plugin stays enabled. Raises PluginError where an upgrade
        waits for consent: it is kept, the installed version stays."""
        staged = self.stage(request)
        entry = self.register(staged)
        if staged.consent.waiting:
            raise waits_error(staged)
        return self.enable(entry.no) if request.enable else entry

    def prune(self, no: str) -> list[int]:
        """Forget the oldest versions and snapshots beyond what is kept, and their folders; return
        the spaces of the key-value store that nobody needs any more."""
        gone: list[Release] = []
        spaces: list[int] = []

        def change(entry: Entry) -> Entry:
            entry, gone[:], spaces[:] = releases.pruned(entry)
            return entry

        self.registry.update(no, change)
        for release in gone:
            shutil.rmtree(self.plugins_dir / release.folder, ignore_errors=True)
        return spaces

    def release_package(self, entry: Entry, release: Release) -> Package:
        """Return an installed version with its whole manifest, its files checked."""
        folder = self.plugins_dir / release.folder
        if not folder.is_dir() or tree_digest(folder) != release.digest:
            raise PluginError(f"{entry.no}: files in {folder} have changed since the install")
        return Package(read_manifest(folder), folder, release.digest, release.source, entry.space)

    def versions(self, no: str) -> c.PluginVersions:
        return version_views.versions(self.registry.get(no), self.plugins_dir)

    def set_grant(self, no: str, name: str, *, granted: bool) -> Entry:
        """Grant a capability that the installed version asks for, or deny it for good."""
        manifest = read_manifest(self.registry.folder(self.registry.get(no)))
        return self.registry.update(no, lambda e: consent.changed(e, manifest, name, granted))

    def enable(self, no: str) -> Entry:
        """Enable, after checking that the package is whole and has a place in the order."""
        package = self.load(self.registry.get(no), verify=True)
        order_plugins([*self._others(no), package.manifest])
        return self.registry.change(no, enabled=True, quarantine=None)

    def disable(self, no: str) -> Entry:
        return self.registry.change(no, enabled=False)

    def uninstall(self, no: str) -> Entry:
        """Forget the plugin and remove its packages and its data folder."""
        entry = self.registry.remove(no)
        self.secrets.forget(no)
        shutil.rmtree(self.plugins_dir / no, ignore_errors=True)
        return entry

    # --- settings and secrets -------------------------------------------------------------------

    def config(self, no: str) -> c.PluginConfig:
        entry = self.registry.get(no)
        manifest = self.load(entry, verify=False).manifest
        return config_store.describe(entry, manifest, self.secrets.set_at(no))

    def configure(self, request: c.SetPluginConfig, by: int) -> c.PluginConfig:
        """Change settings of a plugin that does not run."""
        entry = self.registry.get(request.no)
        manifest = self.load(entry, verify=False).manifest
        overrides = config_store.changed(entry, manifest, request)
        config_store.persist(self.registry, request.no, entry.config_number + 1, overrides, by)
        return self.config(request.no)

    def set_secret(self, request: c.SetPluginSecret) -> c.PluginSecrets:
        """Seal, replace or remove a value that the manifest declares."""
        no, name = request.no, request.key
        times = self.secret_times(no).set_at
        if request.value is None and self.secrets.set_at(no).get(name):
            # What an older version had declared can be removed still.
            self.secrets.remove(no, name)
            return self.secret_times(no)
        if name not in times:
            known = ", ".join(times) or "none"
            raise PluginError(f"{no}: there is no secret {name[:80]!a}, expected one of: {known}")
        if request.value is None or (request.rotate and not times[name]):
            raise PluginError(f"{no}: the secret {name} is not set")
        self.secrets.put(no, name, request.value)
        return self.secret_times(no)

    def secret_times(self, no: str) -> c.PluginSecrets:
        manifest = self.load(self.registry.get(no), verify=False).manifest
        set_at = self.secrets.set_at(no)
        names = secret_names(manifest.schema)
        return c.PluginSecrets(no, {name: set_at.get(name, 0.0) for name in names})

    # --- packages -------------------------------------------------------------------------------

    def load(self, entry: Entry, *, verify: bool) -> Package:
        """Return an installed package as it may run: its manifest holds what was granted.

        `verify` compares its files with the digest that was agreed to.
        """
        if entry.granted is None:
            raise PluginError(
                f"{entry.no}: nobody has agreed to what it asks for; install it again"
            )
        folder = self.registry.folder(entry)
        manifest = read_manifest(folder)
        if verify and tree_digest(folder) != entry.digest:
            raise PluginError(f"{entry.no}: files in {folder} have changed since the install")
        manifest = self._opened(narrow(manifest, entry.granted, entry.denied), entry)
        return Package(manifest, folder, entry.digest, entry.source, entry.space)

    def _opened(self, manifest: Manifest, entry: Entry) -> Manifest:
        """Add the hosts that the operator's configuration opens to the plugin."""
        asked = manifest.capabilities
        more = tuple(
            target
            for target in self._egress_allow.get(entry.no, ())
            if target not in asked.egress and not is_denied(f"egress:{target}", entry.denied)
        )
        if not more:
            return manifest
        capabilities = msgspec.structs.replace(asked, egress=asked.egress + more)
        return msgspec.structs.replace(manifest, capabilities=capabilities)

    def stand_in(self, entry: Entry) -> Package:
        """Return a package that keeps the place of one whose files are damaged; it cannot run."""
        manifest = parse_manifest(entry.manifest.encode())
        manifest = narrow(manifest, entry.granted or (), entry.denied)
        folder = self.registry.folder(entry)
        return Package(manifest, folder, entry.digest, entry.source, entry.space)

    def reserve_generations(self, no: str, count: int) -> int:
        """Reserve `count` generation numbers durably; return the last number before them."""
        last = self.registry.get(no).generation
        self.registry.change(no, generation=last + count)
        return last

    def _check(self, manifest: Manifest, folder: Path) -> None:
        check_imports(manifest, folder)
        order_plugins([*self._others(manifest.no), manifest])

    def _others(self, no: str) -> list[Manifest]:
        entries = self.registry.entries().values()
        return [
            parse_manifest(entry.manifest.encode())
            for entry in entries
            if entry.enabled and entry.no != no and entry.manifest
        ]


def waits_error(staged: Staged) -> PluginError:
    """Say that an upgrade waits for consent, and what for."""
    manifest = staged.package.manifest
    wanted = "; ".join(f"{each.name} (to {each.text})" for each in staged.consent.waiting)
    return PluginError(
        f"{manifest.no}: version {manifest.version} asks for more than was granted and waits for "
        f"consent: {wanted}. `wkhost plugin upgrade {manifest.no}` shows it and asks"
    )


def _manifest_text(folder: Path) -> str:
    return (folder / MANIFEST_NAME).read_text(encoding="utf-8")
