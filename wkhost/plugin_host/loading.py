"""From an entry of the registry to what runs: the plan of its next process, and its supervisor."""

from __future__ import annotations

from functools import partial

import structlog

from wkhost.errors import PluginError
from wkhost.hooks.records import CallRecords
from wkhost.link import contract as c
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.config_schema import merge_config
from wkhost.plugin_host.generation import Surroundings
from wkhost.plugin_host.numbering import Numbering
from wkhost.plugin_host.output import LogRing
from wkhost.plugin_host.package import builtin_folder
from wkhost.plugin_host.plan import Plan, Server
from wkhost.plugin_host.registry import Entry, Quarantine
from wkhost.plugin_host.rules import Rules
from wkhost.plugin_host.supervisor import Supervisor
from wkhost.plugin_host.threads import in_thread
from wkhost.plugin_host.upgrades import Upgrades

log = structlog.get_logger(__name__)


class Loader:
    """See the module. `broken` says of plugins that could not be loaded why; `rings` keeps what
    plugins print, over all their processes."""

    def __init__(
        self,
        catalog: Catalog,
        upgrades: Upgrades,
        around: Surroundings,
        server: Server,
        records: CallRecords,
        rules: Rules,
    ) -> None:
        self._catalog = catalog
        self._upgrades = upgrades
        self._around = around
        self._server = server
        self._records = records
        self._rules = rules
        self.broken: dict[str, str] = {}
        self.rings: dict[str, LogRing] = {}

    async def wanted(self, no: str, entries: dict[str, Entry]) -> Entry:
        """Return the entry of a plugin; a built-in that is not installed is installed."""
        if no in entries:
            return entries[no]
        if builtin_folder(no) is None:
            raise PluginError(f"{no}: not installed (wkhost plugin install PATH)")
        request = c.InstallPlugin(no, enable=False)
        return await in_thread(self._catalog.install, request)

    async def plan(self, entry: Entry) -> Plan:
        """Return what the next process of an entry is made of; its files are checked."""
        package = await in_thread(partial(self._catalog.load, entry, verify=True))
        manifest = package.manifest
        config = merge_config(manifest.schema, manifest.config, entry.config)
        return Plan(package, config, entry.config_number)

    async def load(self, entry: Entry) -> Supervisor | None:
        """Make the supervisor of an entry.

        One that must not run gets its place all the same, and its policy decides: that its files
        are damaged must not let messages pass unseen. Without a manifest there is no place.
        """
        held: tuple[str, str] | None = None
        if entry.quarantine is not None:
            held = "quarantined", entry.quarantine.reason
        try:
            entry = await self._upgrades.bring_values(entry)
            plan = await self.plan(entry)
        except PluginError as error:
            log.error("plugin_broken", plugin=entry.no, reason=str(error))
            self.broken[entry.no] = str(error)
            if not entry.manifest:
                return None
            held = "failed", str(error)
            plan = Plan(self._catalog.stand_in(entry), {}, entry.config_number)
        supervisor = self._supervisor(plan)
        if held is not None:
            lines = entry.quarantine.lines if entry.quarantine is not None else ()
            supervisor.hold_back(*held, lines)
        return supervisor

    async def fresh(self, no: str) -> Supervisor:
        """Make the supervisor of an installed plugin that is to run. Raises PluginError."""
        entry = await in_thread(self._catalog.registry.get, no)
        entry = await self._upgrades.bring_values(entry)
        return self._supervisor(await self.plan(entry))

    def forget(self, no: str) -> None:
        """Drop what is kept of an uninstalled plugin."""
        self.broken.pop(no, None)
        self.rings.pop(no, None)

    def _supervisor(self, plan: Plan) -> Supervisor:
        no = plan.package.manifest.no
        return Supervisor(
            plan,
            records=self._records,
            around=self._around,
            answers=self._around.answers,
            server=self._server,
            ring=self.rings.setdefault(no, LogRing()),
            next_generation=Numbering(self._catalog, no).next,
            rules=self._rules,
            quarantine=self._note_quarantine,
        )

    async def _note_quarantine(self, no: str, quarantine: Quarantine) -> None:
        self._around.auditor.note("quarantine", no, reason=quarantine.reason)
        change = partial(self._catalog.registry.change, no, quarantine=quarantine)
        await in_thread(change)
