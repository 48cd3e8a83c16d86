"""The plugin host: which plugins run, in which order, and every change of that while running.

Theory of operation. An active plugin is a supervisor (its processes), a place in the chain and,
where it observes, an observer. A change is made durable in the catalog and then in the running
set, one change at a time; reloads and configurations of different plugins run side by side. A
plugin leaves the chain before its process is stopped; one that is enabled but dead stays in the
chain, where its policy decides.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import trio

from wkhost.errors import PluginError
from wkhost.hooks.chain import Chain
from wkhost.hooks.target import Answers
from wkhost.link import contract
from wkhost.plugin_host import status
from wkhost.plugin_host.audit import AUDIT_FOLDER, AuditLog
from wkhost.plugin_host.auditor import Auditor
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.config_schema import merge_config
from wkhost.plugin_host.egress_rules import PrivateTarget
from wkhost.plugin_host.flusher import Flusher
from wkhost.plugin_host.generation import Surroundings
from wkhost.plugin_host.host_api import HostApi, HostServices
from wkhost.plugin_host.lineage import Lineage
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.numbering import Numbering
from wkhost.plugin_host.observation import Observation
from wkhost.plugin_host.observers import OBSERVING_HOOKS, cursor_name
from wkhost.plugin_host.order import build_chain, order_plugins
from wkhost.plugin_host.output import LogRing
from wkhost.plugin_host.package import Package, builtin_folder
from wkhost.plugin_host.process import Launcher
from wkhost.plugin_host.registry import Entry
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import SandboxPolicy
from wkhost.plugin_host.secret_store import SecretKey
from wkhost.plugin_host.supervisor import DRAIN_S, Plan, Server, Supervisor
from wkhost.plugin_host.tuning import Tuning
from wkhost.store import mutations
from wkhost.store.store import Store

PINNED_S = 1.0
"""How long messages admitted under the old chain may still reach a plugin that left it."""

T = TypeVar("T")
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
        call_counts: Callable[[str], dict[str, dict[str, int]]] = lambda no: {},
        launcher: Launcher | None = None,
        auditor: Auditor | None = None,
        secret_key: SecretKey | None = None,
        egress_private: tuple[PrivateTarget, ...] = (),
    ) -> None:
        """`runtime_dir` is short (sockets live below it) and belongs to this host alone.

        `call_counts` tells hook -> outcome -> count of a plugin, for its status.
        """
        self.catalog = Catalog(plugins_dir, secret_key)
        self.auditor = auditor or Auditor(AuditLog(plugins_dir / AUDIT_FOLDER))
        self._store = store
        self._answers = answers
        self._chain_changed = chain_changed
        self._chain_number = 0
        self._call_counts = call_counts
        self._server = Server(max_payload_bytes, host_version)
        self._lineage = Lineage(trio.current_time)
        self._api = HostApi(store, services, self._lineage, self.auditor.deny)
        self._flusher = Flusher()
        self._around = Surroundings(
            runtime_dir=runtime_dir,
            launcher=launcher or SandboxLauncher(SandboxPolicy(), plugins_dir),
            answers=answers,
            lineage=self._lineage,
            schedule=self._flusher.schedule,
            host_api=self._api.methods,
            auditor=self.auditor,
            open_secrets=self.catalog.secrets.open,
            egress_private=egress_private,
        )
        self._active: dict[str, Supervisor] = {}
        self._broken: dict[str, str] = {}
        self._rings: dict[str, LogRing] = {}
        self._observation = Observation(store, services)
        self._changing = trio.Lock()
        self.tuning = Tuning(self.catalog, self._running, self._changing)
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
            entries = await self._in_thread(self.catalog.registry.entries)
            if names is None:
                wanted = [entry for entry in entries.values() if entry.enabled]
            else:
                wanted = [await self._wanted(no, entries) for no in dict.fromkeys(names)]
            supervisors = [s for s in [await self._load(entry) for entry in wanted] if s]
            order_plugins(supervisor.manifest for supervisor in supervisors)
            async with trio.open_nursery() as nursery:
                for supervisor in supervisors:
                    nursery.start_soon(self._activate, supervisor)
            self._new_chain()
            for no in list(self._active):
                await self._observe(no)

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

    async def install(self, request: contract.InstallPlugin) -> contract.PluginStatus:
        """Install or upgrade. A running plugin is reloaded; if that fails the old one stays."""
        async with self._changing:
            package = await self._in_thread(self.catalog.stage, request.source)
            no = package.manifest.no
            before = (await self._in_thread(self.catalog.registry.entries)).get(no)
            active = self._active.get(no)
            if active is None:
                enabled = before is not None and before.enabled
                await self._in_thread(partial(self.catalog.register, package, enabled=enabled))
                if request.enable or enabled:
                    await self._enable(no)
            else:
                plan = active.plan
                overrides = {} if before is None else before.config
                config = _merged(package, overrides)
                await self._reload(no, Plan(package, config, plan.config_number))
                await self._in_thread(partial(self.catalog.register, package, enabled=True))
            return self.info(no)

    async def enable(self, no: str) -> contract.PluginStatus:
        """Start it and give it its place; if it does not start it stays disabled."""
        async with self._changing:
            if no not in self._active:
                await self._enable(no)
            else:
                await self._in_thread(self.catalog.enable, no)
            return self.info(no)

    async def disable(self, no: str) -> contract.PluginStatus:
        """Take it out of the chain, let its calls finish, stop it."""
        async with self._changing:
            await self._in_thread(self.catalog.disable, no)
            await self._deactivate(no, "disable")
            return self.info(no)

    async def reload(self, no: str) -> contract.PluginStatus:
        """Replace the process by a new one of the installed version, between two batches."""
        entry = await self._in_thread(self.catalog.registry.get, no)
        if no not in self._active:
            raise PluginError(f"{no}: not running, enable it first")
        package = await self._in_thread(partial(self.catalog.load, entry, verify=True))
        await self._reload(no, Plan(package, _merged(package, entry.config), entry.config_number))
        return self.info(no)

    async def uninstall(self, no: str) -> contract.PluginStatus:
        """Stop it and remove its packages, data, values and cursor; return what it was last."""
        async with self._changing:
            entry = await self._in_thread(self.catalog.registry.get, no)
            await self._deactivate(no, "uninstall")
            await self._in_thread(self.catalog.uninstall, no)
            self._broken.pop(no, None)
            self._rings.pop(no, None)
            await self._api.values(no).clear()
            self._api.forget(no)
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
        ring = self._rings.get(request.no)
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

    def statistics(self) -> dict[str, Any]:
        """Return, per active plugin, what its stream and its observer are at."""
        return {
            no: {**status.statistics(active), "observers": self._observation.statistics(no)}
            for no, active in self._active.items()
        }

    # --- the running set ------------------------------------------------------------------------

    async def _wanted(self, no: str, entries: dict[str, Entry]) -> Entry:
        if no in entries:
            return entries[no]
        if builtin_folder(no) is None:
            raise PluginError(f"{no}: not installed (wkhost plugin install PATH)")
        return await self._in_thread(partial(self.catalog.install, no, enable=False))

    async def _load(self, entry: Entry) -> Supervisor | None:
        """Make the supervisor of an entry; a broken package is noted and left out."""
        try:
            package = await self._in_thread(partial(self.catalog.load, entry, verify=True))
            plan = Plan(package, _merged(package, entry.config), entry.config_number)
        except PluginError as error:
            log.error("plugin_broken", plugin=entry.no, reason=str(error))
            self._broken[entry.no] = str(error)
            return None
        return self._supervisor(plan)

    def _supervisor(self, plan: Plan) -> Supervisor:
        return Supervisor(
            plan,
            around=self._around,
            answers=self._answers,
            server=self._server,
            ring=self._rings.setdefault(plan.package.manifest.no, LogRing()),
            next_generation=Numbering(self.catalog, plan.package.manifest.no).next,
        )

    async def _activate(self, supervisor: Supervisor) -> None:
        """Start a supervisor; returns after its first start, good or bad."""
        if self._nursery is None:
            raise PluginError("the plugin host is not running")
        self._active[supervisor.no] = supervisor
        self._broken.pop(supervisor.no, None)
        await self._nursery.start(supervisor.run)

    async def _enable(self, no: str) -> None:
        entry = await self._in_thread(self.catalog.registry.get, no)
        package = await self._in_thread(partial(self.catalog.load, entry, verify=True))
        supervisor = self._supervisor(
            Plan(package, _merged(package, entry.config), entry.config_number)
        )
        await self._activate(supervisor)
        try:
            if not supervisor.proxy.ready:
                raise PluginError(supervisor.detail or f"{no}: did not start")
            self._new_chain()
        except PluginError:
            del self._active[no]
            await supervisor.stop("disable")
            raise
        await self._in_thread(self.catalog.enable, no)
        await self._observe(no)

    async def _deactivate(self, no: str, reason: str) -> None:
        active = self._active.get(no)
        if active is None:
            return
        was_first = all(place.no == no for place in status.order_until(no, self._manifests()))
        del self._active[no]
        self._new_chain()
        self._observation.stop(no)
        with trio.move_on_after(DRAIN_S):
            if not was_first:
                # Messages pinned to the old chain may be at an earlier plugin still.
                await trio.sleep(PINNED_S)
            await active.wait_idle()
        await active.stop(reason)

    async def _reload(self, no: str, plan: Plan) -> None:
        active = self._active[no]
        # Refuses a cycle before anything is started.
        build_chain(0, {**self._manifests(), no: plan.package.manifest}, self._proxy)
        changed = plan.package.manifest != active.manifest
        await active.reload(plan)
        if changed:
            self._new_chain()
            await self._observe(no)

    def _new_chain(self) -> None:
        chain = build_chain(self._chain_number + 1, self._manifests(), self._proxy)
        self._chain_number += 1
        self._chain_changed(chain)

    def _manifests(self) -> dict[str, Manifest]:
        return {no: active.manifest for no, active in self._active.items()}

    def _running(self, no: str) -> Supervisor | None:
        return self._active.get(no)

    def _proxy(self, no: str) -> Any:
        return self._active[no].proxy

    async def _observe(self, no: str) -> None:
        active = self._active[no]
        if self._nursery is not None:
            await self._observation.start(self._nursery, active, active.manifest)

    # --- small parts ----------------------------------------------------------------------------

    def _status(self, entry: Entry) -> contract.PluginStatus:
        active = self._active.get(entry.no)
        if active is None:
            return status.resting(entry, self._broken.get(entry.no, ""))
        return status.running(entry, active, self._call_counts(entry.no))

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Package work reads and syncs files; it must not hold the loop."""
        return await trio.to_thread.run_sync(function, *args)


def _merged(package: Package, overrides: dict[str, Any]) -> dict[str, Any]:
    return merge_config(package.manifest.schema, package.manifest.config, overrides)
