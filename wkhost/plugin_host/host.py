"""The plugin host: which plugins run, in which order, and every change of that while running.

Theory of operation. An active plugin is a supervisor (its processes), a place in the chain and,
where it observes, an observer. A change is made durable in the catalog and then in the running
set, one change at a time; reloads and configurations of different plugins run side by side. A
plugin leaves the chain before its process is stopped; one that is enabled but dead stays in the
chain, where its policy decides.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import structlog
import trio

from wkhost.errors import PluginError
from wkhost.hooks.chain import Chain
from wkhost.hooks.records import CallRecords
from wkhost.hooks.target import Answers
from wkhost.link import contract
from wkhost.plugin_host import figures, status
from wkhost.plugin_host.audit import AUDIT_FOLDER, AuditLog
from wkhost.plugin_host.auditor import Auditor
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.egress_rules import PrivateTarget, Target
from wkhost.plugin_host.flusher import Flusher
from wkhost.plugin_host.generation import Surroundings
from wkhost.plugin_host.host_api import HostApi, HostServices
from wkhost.plugin_host.lineage import Lineage
from wkhost.plugin_host.loading import Loader
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.observation import Observation
from wkhost.plugin_host.observers import OBSERVING_HOOKS, cursor_name
from wkhost.plugin_host.order import build_chain, order_plugins
from wkhost.plugin_host.output import LogRing
from wkhost.plugin_host.pacer import Pacer
from wkhost.plugin_host.plan import DIRECTLY, Plan, Server, Switch
from wkhost.plugin_host.process import Launcher
from wkhost.plugin_host.registry import Entry
from wkhost.plugin_host.rules import DEFAULT_RULES, Rules
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import SandboxPolicy
from wkhost.plugin_host.secret_store import SecretKey
from wkhost.plugin_host.supervisor import DRAIN_S, Supervisor
from wkhost.plugin_host.threads import in_thread
from wkhost.plugin_host.tuning import Tuning
from wkhost.plugin_host.upgrades import Upgrades
from wkhost.plugin_host.versions import Versions
from wkhost.store import mutations
from wkhost.store.store import Store
from wkhost.types import Message

PINNED_S = 1.0
"""How long messages admitted under the old chain may still reach a plugin that left it."""

log = structlog.get_logger(__name__)


class PluginHost:
    """See the module. Methods raise PluginError, one sentence for people."""

    def __init__(
        self,
        *,
        plugins_dir: Path,
        runtime_dir: Path,
        store: Store,
        answers: Answers,
        services: HostServices,
        chain_changed: Callable[[Chain], None],
        max_payload_bytes: int,
        host_version: str,
        records: CallRecords | None = None,
        launcher: Launcher | None = None,
        auditor: Auditor | None = None,
        secret_key: SecretKey | None = None,
        egress_allow: Mapping[str, Sequence[Target]] = MappingProxyType({}),
        egress_private: tuple[PrivateTarget, ...] = (),
        egress_on: bool = True,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        """`runtime_dir` is short (sockets live below it) and belongs to this host alone.

        `records` is where calls are counted and breakers get their rules from.
        """
        self.catalog = Catalog(plugins_dir, secret_key, egress_allow)
        self.auditor = auditor or Auditor(AuditLog(plugins_dir / AUDIT_FOLDER))
        self._store = store
        self._chain_changed = chain_changed
        self._chain_number = 0
        self.records = CallRecords() if records is None else records
        server = Server(max_payload_bytes, host_version)
        self._lineage = Lineage(trio.current_time)
        self._api = HostApi(store, services, self._lineage, self.auditor.deny)
        self._flusher = Flusher()
        self._pacer = Pacer(answers)
        self._around = Surroundings(
            runtime_dir=runtime_dir,
            launcher=launcher or SandboxLauncher(SandboxPolicy(), plugins_dir),
            answers=self._pacer,
            lineage=self._lineage,
            schedule=self._flusher.schedule,
            host_api=self._api.methods,
            auditor=self.auditor,
            open_secrets=self.catalog.secrets.open,
            egress_private=egress_private,
            egress_on=egress_on,
        )
        self._active: dict[str, Supervisor] = {}
        self._observation = Observation(
            store,
            services,
            max_lag=rules.max_lag,
            dropped=self._note_dropped,
            skipped=self._note_skipped,
        )
        self._changing = trio.Lock()
        self.upgrades = Upgrades(
            self.catalog, store, self._api, self._observation, self.running, self.swap
        )
        self._loader = Loader(
            self.catalog, self.upgrades, self._around, server, self.records, rules
        )
        self.versions = Versions(
            self, self.upgrades, self._observation, self._changing, rules.probation_s
        )
        self.tuning = Tuning(self.catalog, self.running, self._changing)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; plugin processes that are left then are killed and reaped."""
        runtime_dir = self._around.runtime_dir
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._around.launcher.prepare()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._flusher.run)
                nursery.start_soon(self._pacer.run)
                await nursery.start(self.auditor.run)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            shutil.rmtree(runtime_dir, ignore_errors=True)

    async def stop(self) -> None:
        """Stop all plugins in good order; the caller sets the deadline and then cancels `run`."""
        async with self._changing, trio.open_nursery() as nursery:
            for active in self._active.values():
                self._observation.stop(active.no)
                nursery.start_soon(active.stop, "shutdown")

    def log_grew(self) -> None:
        """The store's log has new durable messages."""
        self._observation.log_grew()

    # --- changes --------------------------------------------------------------------------------

    async def start_set(self, names: Sequence[str] | None) -> None:
        """Start exactly the plugins `names`, or (None) those that are enabled.

        Returns when each has started or failed once; a failed one keeps its place in the chain. A
        built-in that is not installed yet is installed. Raises PluginError for an unknown name or a
        cycle in the order.
        """
        async with self._changing:
            entries = await in_thread(self.catalog.registry.entries)
            if names is None:
                wanted = [entry for entry in entries.values() if entry.enabled]
            else:
                wanted = [await self._loader.wanted(no, entries) for no in dict.fromkeys(names)]
            supervisors = [s for s in [await self._loader.load(entry) for entry in wanted] if s]
            order_plugins(supervisor.manifest for supervisor in supervisors)
            async with trio.open_nursery() as nursery:
                for supervisor in supervisors:
                    nursery.start_soon(self._activate, supervisor)
            self.new_chain()
            for no in list(self._active):
                await self.observe(no)

    async def act(self, request: contract.PluginAction) -> contract.PluginStatus:
        """Do one of enable, disable, reload, uninstall."""
        actions = {
            "enable": self.enable,
            "disable": self.disable,
            "reload": self.reload,
            "uninstall": self.uninstall,
        }
        action = actions.get(request.action)
        if action is None:
            raise PluginError(
                f"action: expected one of {', '.join(actions)}, got {request.action[:40]!a}"
            )
        return await action(request.no)

    async def enable(self, no: str) -> contract.PluginStatus:
        """Start it and give it its place; if it does not start it stays disabled.

        It ends a quarantine, and starts a plugin again whose files were found damaged.
        """
        async with self._changing:
            active = self._active.get(no)
            if active is None:
                await self.start(no)
            else:
                entry = await in_thread(self.catalog.enable, no)
                if active.held:
                    await active.lift(await self.plan(entry))
                    self.new_chain()
                    await self.observe(no)
            return self.info(no)

    async def disable(self, no: str) -> contract.PluginStatus:
        """Take it out of the chain, let its calls finish, stop it."""
        async with self._changing:
            await in_thread(self.catalog.disable, no)
            await self._deactivate(no, "disable")
            return self.info(no)

    async def reload(self, no: str) -> contract.PluginStatus:
        """Replace the process by a new one of the installed version, between two batches."""
        entry = await in_thread(self.catalog.registry.get, no)
        active = self._active.get(no)
        if active is None:
            raise PluginError(f"{no}: not running, enable it first")
        if active.held:
            raise PluginError(f"{no}: {active.state}: {active.detail}; enable starts it again")
        await self.swap(no, await self.plan(entry))
        return self.info(no)

    async def uninstall(self, no: str) -> contract.PluginStatus:
        """Stop it and remove its packages, data, values and cursor; return what it was last."""
        async with self._changing:
            entry = await in_thread(self.catalog.registry.get, no)
            await self._deactivate(no, "uninstall")
            await in_thread(self.catalog.uninstall, no)
            self._loader.forget(no)
            for space in {entry.space, *(snapshot.space for snapshot in entry.snapshots)}:
                await self._api.drop_values(no, space)
            self._api.forget(no)
            self.records.forget(no)
            self._around.egress_records.forget(no)
            for hook in OBSERVING_HOOKS:
                self._store.write(mutations.delete_cursor(cursor_name(no, hook)))
            return status.resting(msgspec.structs.replace(entry, enabled=False), "")

    # --- questions ------------------------------------------------------------------------------

    def list(self) -> contract.PluginList:
        entries = self.catalog.registry.entries()
        return contract.PluginList([self._status(entry) for _, entry in sorted(entries.items())])

    def info(self, no: str) -> contract.PluginStatus:
        return self._status(self.catalog.registry.get(no))

    def logs(self, request: contract.GetPluginLogs) -> contract.PluginLogs:
        """Return lines of a plugin since the server started, whether it runs now or not."""
        ring = self._loader.rings.get(request.no)
        if ring is None:
            self.catalog.registry.get(request.no)
            ring = LogRing()
        lines, following = ring.lines(request.after, request.limit)
        return contract.PluginLogs([str(line) for line in lines], following)

    def order(self) -> contract.PluginOrder:
        return status.plugin_order([active.manifest for active in self._active.values()])

    def layers(self, no: str) -> dict[str, str]:
        """Return what contains the plugin's process, layer by layer."""
        active = self._active.get(no)
        if active is None:
            raise PluginError(f"{no}: not running")
        return self._around.launcher.layers(active.manifest)

    async def sandbox(self) -> contract.PluginSandbox:
        """Return what this machine can do to contain plugins, and what it does for each."""
        active = [self._active[no].manifest for no in sorted(self._active)]
        return await in_thread(self._around.launcher.report, active)

    async def figures(self) -> contract.AllPluginFigures:
        """Return counts, queues, breakers and processes of the active plugins."""
        active = [self._active[no] for no in sorted(self._active)]
        observed = {each.no: self._observation.statistics(each.no) for each in active}
        layers = {each.no: self._around.launcher.layers(each.manifest) for each in active}
        egress = self._around.egress_records
        return await figures.all_figures(active, self.records, egress, observed, layers)

    def plugin_values(self, no: str, after: bytes) -> contract.PluginValues:
        """Return a page of a plugin's key-value store."""
        space = self.catalog.registry.get(no).space
        entries, more = self._api.values(no, space).scan(b"", after, 0)
        return contract.PluginValues([(entry.key, entry.value) for entry in entries], more)

    def observations(self, message: Message) -> Sequence[contract.PluginObservation]:
        """Return which observing hooks a stored message concerns, and whether they passed it."""
        return self._observation.passed(message)

    def statistics(self) -> dict[str, Any]:
        """Return, per active plugin, what its stream and its observer are at."""
        return {
            no: {**status.statistics(active), "observers": self._observation.statistics(no)}
            for no, active in self._active.items()
        }

    # --- the running set ------------------------------------------------------------------------

    async def plan(self, entry: Entry) -> Plan:
        """Return what the next process of an entry is made of; its files are checked."""
        return await self._loader.plan(entry)

    async def _activate(self, supervisor: Supervisor) -> None:
        """Start a supervisor; returns after its first start, good or bad."""
        if self._nursery is None:
            raise PluginError("the plugin host is not running")
        self._active[supervisor.no] = supervisor
        self._loader.broken.pop(supervisor.no, None)
        await self._nursery.start(supervisor.run)

    async def start(self, no: str) -> None:
        """Start an installed plugin that is not active, and enable it; as `enable` otherwise."""
        supervisor = await self._loader.fresh(no)
        await self._activate(supervisor)
        try:
            if not supervisor.proxy.ready:
                raise PluginError(supervisor.detail or f"{no}: did not start")
            self.new_chain()
        except PluginError:
            del self._active[no]
            await supervisor.stop("disable")
            raise
        await in_thread(self.catalog.enable, no)
        await self.observe(no)

    async def _deactivate(self, no: str, reason: str) -> None:
        active = self._active.get(no)
        if active is None:
            return
        was_first = all(place.no == no for place in status.order_until(no, self._manifests()))
        del self._active[no]
        self.new_chain()
        self._observation.stop(no)
        with trio.move_on_after(DRAIN_S):
            if not was_first:
                # Messages pinned to the old chain may be at an earlier plugin still.
                await trio.sleep(PINNED_S)
            await active.wait_idle()
        await active.stop(reason)

    async def swap(self, no: str, plan: Plan, switch: Switch = DIRECTLY) -> None:
        """Let a new generation take over, and the chain and the observers follow."""
        active = self._active[no]
        # Refuses a cycle before anything is started.
        build_chain(0, {**self._manifests(), no: plan.package.manifest}, self._proxy)
        changed = plan.package.manifest != active.manifest
        other = switch
        if changed and switch is DIRECTLY:

            async def settle() -> None:
                await self._observation.settle(no, DRAIN_S)

            other = Switch(before=settle)
        try:
            await active.reload(plan, other)
        finally:
            if changed or other is not DIRECTLY:
                self.new_chain()
                await self.observe(no)

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run something beside the plugins, as long as they run."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    def new_chain(self) -> None:
        """Let the members of the chain be those that are active now, as their manifests say."""
        chain = build_chain(self._chain_number + 1, self._manifests(), self._proxy)
        self._chain_number += 1
        self._chain_changed(chain)

    def _note_dropped(self, no: str, hook: str, count: int) -> None:
        """An observer lost messages by the operator's bound: that is never silent."""
        log.error("plugin_observer_dropped", plugin=no, hook=hook, messages=count)
        self.auditor.note("observer_dropped", no, hook=hook, messages=count)

    def _note_skipped(self, no: str, hook: str, message_id: int) -> None:
        self.auditor.note("observer_skipped", no, hook=hook, message_id=message_id)

    def _manifests(self) -> dict[str, Manifest]:
        return {no: active.manifest for no, active in self._active.items()}

    def running(self, no: str) -> Supervisor | None:
        """Return the supervisor of an active plugin."""
        return self._active.get(no)

    def _proxy(self, no: str) -> Any:
        return self._active[no].proxy

    async def observe(self, no: str) -> None:
        """Give a plugin the observers of its manifest, if it is active."""
        active = self._active.get(no)
        if self._nursery is not None and active is not None:
            await self._observation.start(self._nursery, active, active.manifest)

    # --- small parts ----------------------------------------------------------------------------

    def _status(self, entry: Entry) -> contract.PluginStatus:
        active = self._active.get(entry.no)
        if active is None:
            return status.resting(entry, self._loader.broken.get(entry.no, ""))
        return status.running(entry, active, self.records.counts(entry.no))
