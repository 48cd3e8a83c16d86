"""Plugin commands while no server runs: the same answers, worked out on the data directory."""

from __future__ import annotations

import shutil

from wkhost.errors import PluginError
from wkhost.link.contract import Done, PluginList, PluginOrder, PluginStatus
from wkhost.plugin_host.manifest import Manifest, read_manifest
from wkhost.plugin_host.order import order_plugins
from wkhost.plugin_host.package import install_package
from wkhost.plugin_host.process import check_imports
from wkhost.plugin_host.registry import Entry, Registry


class OfflinePlugins:
    """The plugins of a stopped server. Every method blocks and raises PluginError."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def install(self, source: str, enable: bool) -> PluginStatus:
        """Install `source`; an installed plugin of that number is replaced, its config kept."""
        package = install_package(source, self._registry.plugins_dir, check_imports)
        manifest = package.manifest
        manifests = {no: each for no, (_, each) in self._installed().items()}
        order_plugins([*{**manifests, manifest.no: manifest}.values()])
        old = self._registry.entries().get(manifest.no)
        entry = Entry(
            no=manifest.no,
            version=manifest.version,
            digest=package.digest,
            folder=str(package.folder.relative_to(self._registry.plugins_dir)),
            source=package.source,
            enabled=enable,
            config={} if old is None else old.config,
            config_number=1 if old is None else old.config_number,
            generation=0 if old is None else old.generation,
        )
        self._registry.put(entry)
        return _status(entry, manifest)

    def set_enabled(self, no: str, enabled: bool) -> PluginStatus:
        entry = self._registry.change(no, enabled=enabled)
        return _status(entry, read_manifest(self._registry.folder(entry)))

    def uninstall(self, no: str) -> Done:
        entry = self._registry.remove(no)
        shutil.rmtree(self._registry.plugins_dir / entry.no, ignore_errors=True)
        return Done()

    def get(self, no: str) -> PluginStatus:
        entry = self._registry.get(no)
        return _status(entry, read_manifest(self._registry.folder(entry)))

    def list(self) -> PluginList:
        return PluginList([_status(*each) for _, each in sorted(self._installed().items())])

    def order(self) -> PluginOrder:
        """Return the order in which the enabled plugins would be asked."""
        manifests = {no: each for no, (entry, each) in self._installed().items() if entry.enabled}
        hooks: dict[str, list[tuple[str, str]]] = {}
        for place in order_plugins(manifests.values()):
            for hook in manifests[place.no].hooks:
                hooks.setdefault(hook, []).append((place.no, place.reason))
        return PluginOrder(hooks)

    def _installed(self) -> dict[str, tuple[Entry, Manifest]]:
        return {
            no: (entry, read_manifest(self._registry.folder(entry)))
            for no, entry in self._registry.entries().items()
        }


def _status(entry: Entry, manifest: Manifest) -> PluginStatus:
    return PluginStatus(
        no=entry.no,
        version=entry.version,
        enabled=entry.enabled,
        state="stopped" if entry.enabled else "disabled",
        detail="starts with the server" if entry.enabled else "",
        stage=manifest.stage.name.lower(),
        priority=manifest.priority,
        hooks={name: spec.policy.value for name, spec in manifest.hooks.items()},
    )


def refuse_running(action: str) -> PluginError:
    """Return the error of an action that needs a running server."""
    return PluginError(f"{action} needs a running server; start one with `wkhost run`")
