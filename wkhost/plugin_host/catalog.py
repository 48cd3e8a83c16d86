"""What is installed, and changing it: everything about packages that needs no running plugin.

Used by the plugin host (in a worker thread, since it blocks) and by the CLI while no server runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host import config_store
from wkhost.plugin_host.config_schema import merge_config, secret_names
from wkhost.plugin_host.manifest import Manifest, read_manifest
from wkhost.plugin_host.order import order_plugins
from wkhost.plugin_host.package import Package, install_package, remove_stale_staging, tree_digest
from wkhost.plugin_host.process import check_imports
from wkhost.plugin_host.registry import Entry, Registry
from wkhost.plugin_host.secret_store import SecretKey, SecretStore


class Catalog:
    """The plugins directory: packages and registry. All methods block; errors are PluginError."""

    def __init__(self, plugins_dir: Path, secret_key: SecretKey | None = None) -> None:
        self.plugins_dir = plugins_dir
        self.registry = Registry(plugins_dir)
        self.secrets = SecretStore(plugins_dir, secret_key or SecretKey(None, plugins_dir))

    def stage(self, source: str) -> Package:
        """Put the package of `source` in its place, without registering it."""
        remove_stale_staging(self.plugins_dir)
        return install_package(source, self.plugins_dir, self._check)

    def register(self, package: Package, *, enabled: bool) -> Entry:
        """Make a staged package the installed one; config and numbering of before are kept."""
        no = package.manifest.no
        before = self.registry.entries().get(no)
        config = {} if before is None else before.config
        merge_config(package.manifest.schema, package.manifest.config, config)
        entry = Entry(
            no=no,
            version=package.manifest.version,
            digest=package.digest,
            folder=str(package.folder.relative_to(self.plugins_dir)),
            source=package.source,
            enabled=enabled,
            config=config,
            config_number=1 if before is None else before.config_number,
            generation=0 if before is None else before.generation,
            history=config_store.without_secrets(
                () if before is None else before.history, package.manifest
            ),
        )
        self.registry.put(entry)
        return entry

    def install(self, source: str, *, enable: bool) -> Entry:
        """Stage and register; an enabled plugin stays enabled."""
        package = self.stage(source)
        before = self.registry.entries().get(package.manifest.no)
        return self.register(package, enabled=enable or (before is not None and before.enabled))

    def enable(self, no: str) -> Entry:
        """Enable, after checking that the package is whole and has a place in the order."""
        package = self.load(self.registry.get(no), verify=True)
        order_plugins([*self._others(no), package.manifest])
        return self.registry.change(no, enabled=True)

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
        """Return an installed package; `verify` compares its files with the digest."""
        folder = self.registry.folder(entry)
        manifest = read_manifest(folder)
        if verify and tree_digest(folder) != entry.digest:
            raise PluginError(f"{entry.no}: files in {folder} have changed since the install")
        return Package(manifest=manifest, folder=folder, digest=entry.digest, source=entry.source)

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
            read_manifest(self.registry.folder(entry))
            for entry in entries
            if entry.enabled and entry.no != no
        ]
