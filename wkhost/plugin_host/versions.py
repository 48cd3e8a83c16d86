"""Installs, upgrades, rollbacks and grants on a running server, and the probation after an upgrade.

A version that took over is watched for a while. If it shows to be worse than the one before, that
one comes back by itself, with the values and settings it had.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import structlog
import trio

from wkhost.errors import PluginError
from wkhost.hooks.records import CallRecords
from wkhost.link import contract as c
from wkhost.plugin_host.auditor import Auditor
from wkhost.plugin_host.catalog import Catalog, waits_error
from wkhost.plugin_host.observation import Observation
from wkhost.plugin_host.output import HOST_STREAM, escape
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.plan import Plan
from wkhost.plugin_host.probation import figures, judge
from wkhost.plugin_host.registry import Entry
from wkhost.plugin_host.supervisor import DRAIN_S, Supervisor
from wkhost.plugin_host.threads import in_thread
from wkhost.plugin_host.upgrades import Upgrades

LOOK_EVERY_S = 1.0
"""How often a version on probation is judged."""
TAKE_BACK_S = 60.0

log = structlog.get_logger(__name__)


class RunningPlugins(Protocol):
    """What versions need of the plugin host. Methods raise PluginError."""

    catalog: Catalog
    auditor: Auditor
    records: CallRecords

    def running(self, no: str) -> Supervisor | None:
        """Return what keeps a plugin running, None where it is not active."""

    def info(self, no: str) -> c.PluginStatus: ...

    async def plan(self, entry: Entry) -> Plan:
        """Return what the next process of an entry is made of."""

    async def start(self, no: str) -> None:
        """Start an installed plugin and take it into the chain."""

    async def swap(self, no: str, plan: Plan) -> None:
        """Let a new process of `plan` take over."""

    async def observe(self, no: str) -> None:
        """Give a plugin the observers that its manifest asks for."""

    def new_chain(self) -> None:
        """Let messages from now on take the chain of the plugins as they are."""

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task beside the others until the host stops."""


class Versions:
    """See the module. Methods raise PluginError, one sentence for people."""

    def __init__(
        self,
        host: RunningPlugins,
        upgrades: Upgrades,
        observation: Observation,
        changing: trio.Lock,
        probation_s: float,
    ) -> None:
        self._host = host
        self._catalog = host.catalog
        self._upgrades = upgrades
        self._observation = observation
        self._changing = changing
        self._probation_s = probation_s

    async def inspect(self, request: c.InspectPlugin) -> c.PluginProposal:
        """Look at a package and say what it asks for, without installing it."""
        async with self._changing:
            return await in_thread(self._catalog.propose, request.source)

    async def install(self, request: c.InstallPlugin) -> c.PluginStatus:
        """Install or upgrade. A running plugin goes over; if that fails the old version stays."""
        async with self._changing:
            staged = await in_thread(self._catalog.stage, request)
            no = staged.package.manifest.no
            if staged.consent.waiting:
                await in_thread(self._catalog.register, staged)
                raise waits_error(staged)
            active = self._host.running(no)
            leaving = None if active is None else active.plan.package
            entry = await self._upgrades.take(staged)
            if active is None or leaving is None:
                if request.enable or entry.enabled:
                    await self._host.start(no)
            elif leaving.digest != entry.digest:
                self._watch(active, leaving.manifest.version)
            else:
                await self._host.swap(no, await self._host.plan(entry))
            return self._host.info(no)

    async def upgrade(self, request: c.UpgradePlugin) -> c.PluginStatus:
        """Use a version that waited for consent."""
        async with self._changing:
            active = self._host.running(request.no)
            leaving = "" if active is None else active.manifest.version
            await self._upgrades.agree(request.no, request.digest, request.granted)
            if active is not None:
                self._watch(active, leaving)
            return self._host.info(request.no)

    async def rollback(self, request: c.RollbackPlugin) -> c.PluginStatus:
        """Go back to a version or snapshot that was agreed to."""
        async with self._changing:
            await self._upgrades.go_back(request.no, request.to)
            return self._host.info(request.no)

    async def grant(self, request: c.GrantPlugin) -> c.PluginStatus:
        """Grant or deny one capability; it holds from the plugin's next call on."""
        no = request.no
        async with self._changing:
            change = partial(
                self._catalog.set_grant, no, request.capability, granted=request.granted
            )
            entry = await in_thread(change)
            active = self._host.running(no)
            if active is not None:
                await self._use_rights(active, await self._host.plan(entry), entry.denied)
            return self._host.info(no)

    async def versions(self, request: c.GetPluginVersions) -> c.PluginVersions:
        return await in_thread(self._catalog.versions, request.no)

    async def _use_rights(self, active: Supervisor, plan: Plan, denied: Sequence[str]) -> None:
        """Let what is granted now hold: at once where that is possible, else with a new process."""
        before, after = active.manifest, plan.package.manifest
        way_out = bool(after.capabilities.egress) and not before.capabilities.egress
        # What is lost is lost at once, whatever becomes of a new process.
        active.use_rights(plan.package, denied)
        if before.hooks != after.hooks:
            self._host.new_chain()
            await self._observation.settle(active.no, DRAIN_S)
            await self._host.observe(active.no)
        if before.schema != after.schema:
            await active.renew_secrets()
        if (before.limits, before.sandbox) != (after.limits, after.sandbox) or way_out:
            await self._host.swap(active.no, plan)

    # --- probation ------------------------------------------------------------------------------

    def _watch(self, active: Supervisor, before: str) -> None:
        """Begin the probation of the version that `active` has gone over to."""
        if self._probation_s:
            self._host.start_soon(partial(self._probation, active, before))

    async def _probation(self, active: Supervisor, before: str) -> None:
        """Take the version back if it shows to be worse than the one before."""
        no, package = active.no, active.plan.package
        version = package.manifest.version
        deaths = active.deaths
        start = figures(self._host.records.of(no), version)
        why = ""
        with trio.move_on_after(self._probation_s):
            while not why:
                await trio.sleep(min(LOOK_EVERY_S, self._probation_s / 10))
                if not self._is_current(active, package):
                    return
                records = self._host.records.of(no)
                now = figures(records, version).minus(start)
                why = judge(figures(records, before), now, active.deaths - deaths)
        if why:
            await self._take_back(active, package, f"{version} was taken back: {why}")

    def _is_current(self, active: Supervisor, package: Package) -> bool:
        return (
            self._host.running(active.no) is active and active.plan.package.digest == package.digest
        )

    async def _take_back(self, active: Supervisor, package: Package, why: str) -> None:
        no, auditor = active.no, self._host.auditor
        async with self._changing:
            if not self._is_current(active, package):
                return
            log.error("plugin_taken_back", plugin=no, reason=why)
            number = active.generation.number if active.generation is not None else 0
            active.ring.add(number, HOST_STREAM, escape(f"{why}; the version before comes back"))
            try:
                await self._upgrades.go_back(no, "", why)
            except PluginError as error:
                log.error("plugin_not_taken_back", plugin=no, reason=str(error))
                auditor.note("rollback", no, reason=why, failed=str(error))
            else:
                auditor.note("rollback", no, reason=why)
