"""Plugin commands while no server runs: the same answers, worked out on the data directory."""

from __future__ import annotations

from pathlib import Path

from wkhost.errors import PluginError
from wkhost.link.contract import (
    GrantPlugin,
    InstallPlugin,
    PluginList,
    PluginOrder,
    PluginProposal,
    PluginStatus,
)
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.order import order_plugins
from wkhost.plugin_host.registry import Entry


class OfflinePlugins:
    """The plugins of a stopped server. Every method blocks and raises PluginError."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def inspect(self, source: str) -> PluginProposal:
        return self._catalog.propose(source)

    def install(self, request: InstallPlugin) -> PluginStatus:
        return self._status(self._catalog.install(request))

    def set_grant(self, request: GrantPlugin) -> PluginStatus:
        entry = self._catalog.set_grant(request.no, request.capability, granted=request.granted)
        return self._status(entry)

    def set_enabled(self, no: str, enabled: bool) -> PluginStatus:
        change = self._catalog.enable if enabled else self._catalog.disable
        return self._status(change(no))

    def uninstall(self, no: str) -> PluginStatus:
        """Return what it was last."""
        last = self.get(no)
        self._catalog.uninstall(no)
        return last

    def get(self, no: str) -> PluginStatus:
        return self._status(self._catalog.registry.get(no))

    def list(self) -> PluginList:
        entries = self._catalog.registry.entries()
        return PluginList([self._status(entry) for _, entry in sorted(entries.items())])

    def order(self) -> PluginOrder:
        """Return the order in which the enabled plugins would be asked."""
        manifests = {
            no: self._manifest(entry)
            for no, entry in self._catalog.registry.entries().items()
            if entry.enabled
        }
        hooks: dict[str, list[tuple[str, str]]] = {}
        for place in order_plugins(manifests.values()):
            for hook in manifests[place.no].hooks:
                hooks.setdefault(hook, []).append((place.no, place.reason))
        return PluginOrder(hooks)

    def _manifest(self, entry: Entry) -> Manifest:
        return self._catalog.stand_in(entry).manifest

    def _status(self, entry: Entry) -> PluginStatus:
        manifest = self._manifest(entry)
        state, detail = "disabled", ""
        if entry.enabled:
            state, detail = "stopped", "starts with the server"
        if entry.enabled and entry.quarantine is not None:
            state, detail = "quarantined", entry.quarantine.reason
        return PluginStatus(
            no=entry.no,
            version=entry.version,
            enabled=entry.enabled,
            state=state,
            detail=detail,
            last_lines=[] if entry.quarantine is None else list(entry.quarantine.lines),
            stage=manifest.stage.name.lower(),
            priority=manifest.priority,
            hooks={name: spec.policy.value for name, spec in manifest.hooks.items()},
        )


def needs_server(action: str, data_dir: Path) -> PluginError:
    """Return the error of an action that needs a running server."""
    return PluginError(
        f"{action} needs a running server, and none has the data directory {data_dir}; "
        "start one with `wkhost run`"
    )
