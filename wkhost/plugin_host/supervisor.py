"""One plugin's life: start, restart with back-off, reload, stop.

Theory of operation. `run` keeps exactly one current generation. When it ends unasked, the next is
started: at once the first time and after a long life, else after a pause that grows. `reload`
starts the next beside the current one, waits for its credit, switches the proxy between two
batches and drains the old one. Starts are serialised by a lock; old generations drain beside, each
bounded in time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from zlib import crc32

import msgspec
import structlog
import trio

from wkhost.errors import PluginError
from wkhost.hooks.records import CallRecords
from wkhost.hooks.target import Answers
from wkhost.hooks.verdict import Continue, Failure, Refuse
from wkhost.plugin_host.capability import asked, names, narrow
from wkhost.plugin_host.config_schema import secret_names
from wkhost.plugin_host.crashes import Crashes
from wkhost.plugin_host.generation import Generation, Surroundings
from wkhost.plugin_host.handshake import Identity
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.observers import OBSERVING_HOOKS
from wkhost.plugin_host.output import LogRing, escape
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.plan import DIRECTLY, Persist, Plan, PluginVetoError, Server, Switch
from wkhost.plugin_host.process import LaunchSpec
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.plugin_host.registry import Quarantine
from wkhost.plugin_host.rules import DEFAULT_RULES, Rules
from wkhost.plugin_host.selftest import check_health
from wkhost.plugin_host.spare import Spare

DRAIN_S = 5.0
"""Longest wait for the calls that an old generation still has."""
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
HEALTHY_S = 10.0
"""A generation that lived so long forgives the failures before it."""

LAST_WORDS_S = 0.05
"""How long a death may take to tell why."""
QUARANTINE_LINES = 20

log = structlog.get_logger(__name__)


class Supervisor:
    """See the module. `next_generation` numbers processes over restarts of the server."""

    def __init__(
        self,
        plan: Plan,
        *,
        around: Surroundings,
        answers: Answers,
        server: Server,
        records: CallRecords,
        ring: LogRing,
        next_generation: Callable[[], Awaitable[int]],
        rules: Rules = DEFAULT_RULES,
        quarantine: Callable[[str, Quarantine], Awaitable[None]] | None = None,
    ) -> None:
        """`quarantine(no, why)` makes a quarantine durable."""
        self.no = plan.package.manifest.no
        self.plan = plan
        version = plan.package.manifest.version
        self.proxy = PluginProxy(self.no, version, answers, records)
        self.ring = ring
        self.state = "starting"
        self.detail = ""
        self.stopped = trio.Event()
        self._around = around
        self._server = server
        self._next_generation = next_generation
        self._current: Generation | None = None
        self._last: Generation | None = None
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._starts = 0
        """Starts since the last long life."""
        self._all_starts = 0
        self._starting: Generation | None = None
        self._stop_reason = ""
        self._last_config = 0
        self._rules = rules
        self._quarantine = quarantine
        self.last_lines: tuple[str, ...] = ()
        """What a quarantined plugin printed last."""
        self._held = False
        """Nothing is started: it is in quarantine, or its files are not what was agreed to."""
        self._crashes = Crashes(rules)
        self._living: set[Generation] = set()
        self._spare = Spare(self.no, self._make_spare)
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.no} {self.state}>"

    @property
    def manifest(self) -> Manifest:
        return self.plan.package.manifest

    @property
    def generation(self) -> Generation | None:
        """The current process, or the last one while there is none."""
        return self._last

    @property
    def restarts(self) -> int:
        """Starts that nobody asked for, good or bad."""
        return max(0, self._all_starts - 1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the plugin running until `stop`. `started` after the first start, good or bad."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                async with trio.open_nursery() as keeper:
                    keeper.start_soon(self._spare.run, nursery)
                    await self._start_missing()
                    task_status.started()
                    while not self._stop_reason:
                        await self._watch()
                    keeper.cancel_scope.cancel()
                self._spare.want(None)
                if self._current is not None:
                    await self._current.stop(self._stop_reason)
        finally:
            self.state = "stopped"
            self.stopped.set()

    async def reload(self, plan: Plan, switch: Switch = DIRECTLY) -> None:
        """Switch to a new generation made of `plan`; returns when it is current.

        Raises PluginError if it does not start; then the old one stays as it was. A plugin that is
        held back is so no more when its new generation serves.
        """
        async with self._lock:
            if self._stop_reason or self._nursery is None:
                raise PluginError(f"{self.no}: is being stopped")
            before = self.state
            self.state = "reloading"
            try:
                await self._start(plan, switch)
            except PluginError:
                if self.state == "reloading":
                    self.state = before
                raise

    def hold_back(self, state: str, detail: str, lines: Sequence[str] = ()) -> None:
        """Start nothing until `lift` or a reload that works. The plugin keeps its place in the
        chain, and its policy decides."""
        self._held = True
        self.state, self.detail, self.last_lines = state, detail, tuple(lines)
        self._spare.want(None)

    @property
    def deaths(self) -> int:
        """Generations that ended unasked, and starts that failed."""
        return self._crashes.total

    @property
    def held(self) -> bool:
        """It is held back: nothing is started."""
        return self._held

    async def lift(self, plan: Plan) -> None:
        """Start again what was held back. Raises PluginError where it does not start; then it is
        started again and again as any other."""
        self.plan = plan
        self._forgive()
        await self._start_missing()
        self._wake.set()
        if not self.proxy.ready:
            raise PluginError(self.detail or f"{self.no}: did not start")

    def _forgive(self) -> None:
        self._held = False
        self._starts = 0
        self._crashes.forgive()
        self.last_lines = ()

    def use_rights(self, package: Package, denied: Collection[str]) -> None:
        """Let other rights hold from the next call on, for every process that lives. One of another
        version, which only finishes its calls, loses what is denied and gains nothing."""
        digest = self.plan.package.digest
        self.plan = msgspec.structs.replace(self.plan, package=package)
        for generation in self._living:
            manifest = package.manifest
            if generation.spec.digest != digest:
                own = generation.session.identity.manifest
                manifest = narrow(own, names(asked(own)), denied)
            generation.use_manifest(manifest)
        self._want_spare()

    async def configure(self, plan: Plan, budget_s: float, persist: Persist) -> None:
        """Use other settings: ask the plugin, `persist` them, then name them in its next batch.

        No generation starts meanwhile, so none can be made of what is being replaced. Raises
        PluginError when the plugin refuses, fails or is silent; then nothing has changed. A process
        that is not there is not asked: the next one is made of the new settings.
        """
        async with self._lock:
            session = self.proxy.session if self.proxy.ready else None
            if session is not None:
                await self._propose(plan, budget_s)
            await persist()
            self.plan = plan
            if session is not None:
                session.config_number = plan.config_number

    async def _propose(self, plan: Plan, budget_s: float) -> None:
        answer = await self.proxy.config_update(plan.config_json, plan.config_number, budget_s)
        if isinstance(answer, Continue):
            return
        if isinstance(answer, Refuse):
            raise PluginVetoError(f"{self.no}: refuses the configuration: {escape(answer.text)}")
        detail = answer.detail if isinstance(answer, Failure) else type(answer).__name__
        raise PluginError(f"{self.no}: did not accept the configuration: {detail}")

    def number_config(self, stored: int) -> int:
        """Return the number of a new configuration. None is given twice to one process, because a
        late answer to a refused one must not be taken for the answer to another."""
        self._last_config = max(self._last_config, stored) + 1
        return self._last_config

    async def renew_secrets(self) -> None:
        """Send what the store of secrets holds now to the process that runs, if one does."""
        async with self._lock:
            session = self.proxy.session
            values = await self._open_secrets(self.manifest)
            if session is not None and values is not None:
                session.send_secrets(values)

    async def _open_secrets(self, manifest: Manifest) -> dict[str, str] | None:
        names = secret_names(manifest.schema)
        if not names:
            return None
        return await trio.to_thread.run_sync(self._around.open_secrets, manifest.no, names)

    async def wait_idle(self) -> None:
        """Return when no call is open at the current generation."""
        if self._current is not None:
            await self._current.session.wait_idle()

    async def stop(self, reason: str) -> None:
        """Stop for good: `reason` is disable, uninstall or shutdown. Returns when all is gone."""
        self._stop_reason = reason
        self._wake.set()
        if self._starting is not None:
            self._starting.session.end(f"stopped ({reason})")
        await self.stopped.wait()

    # --- one generation after the other ---------------------------------------------------------

    async def _watch(self) -> None:
        """Wait until something happens to the current generation, and see to it."""
        current = self._current
        if current is not None and not current.ended.is_set():
            self._wake = trio.Event()
            await self._wake.wait()
            return
        if current is not None:
            # The process's end says more than the stream's, and comes with it.
            with trio.move_on_after(0 if self._spare.ready else LAST_WORDS_S):
                await current.gone.wait()
            if current is not self._current:
                return
            self._current = None
            await self._note_death(current)
        if self._held:
            self._wake = trio.Event()
            if not self._stop_reason:
                await self._wake.wait()
            return
        if not self._spare.ready:
            await self._pause()
        await self._start_missing()

    async def _note_death(self, current: Generation) -> None:
        if trio.current_time() - current.started_at >= HEALTHY_S:
            self._starts = 0
        self.detail = current.failure
        self.state = "backoff"
        log.warning("plugin_died", plugin=self.no, generation=current.number, reason=self.detail)
        await self._count_crash()

    async def _count_crash(self) -> None:
        """Put the plugin into quarantine when it dies too often."""
        often = self._crashes.note(trio.current_time())
        if not often:
            return
        reason = f"{often}, at last: {self.detail}"
        lines = tuple(self.ring.last_texts(QUARANTINE_LINES))
        self.hold_back("quarantined", reason, lines)
        log.error("plugin_quarantined", plugin=self.no, reason=reason)
        if self._quarantine is not None:
            await self._quarantine(self.no, Quarantine(reason, time.time(), lines))

    async def _pause(self) -> None:
        """Wait before a restart; ended early by a stop or by a reload that worked."""
        if self._starts < 2:
            return
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._starts - 2))
        self._wake = trio.Event()
        with trio.move_on_after(longest * random.uniform(0.75, 1.0)):
            await self._wake.wait()

    async def _start_missing(self) -> None:
        """Start a generation if there is none that lives."""
        async with self._lock:
            current = self._current
            if (
                self._stop_reason
                or self._held
                or (current is not None and not current.ended.is_set())
            ):
                return
            self._starts += 1
            self._all_starts += 1
            self.state = "starting"
            try:
                await self._start(self.plan)
            except PluginError as error:
                self.state, self.detail = "backoff", str(error)
                log.warning("plugin_start_failed", plugin=self.no, reason=str(error))
                await self._count_crash()

    async def _start(self, plan: Plan, switch: Switch = DIRECTLY) -> None:
        """Start a generation and make it current. Raises PluginError."""
        assert self._nursery is not None
        generation = await self._promote(plan) or await self._launch(plan)
        try:
            await check_health(generation.session)
            await switch.before()
            if self._stop_reason:
                raise PluginError(f"{self.no}: is being stopped")
            if generation.session.failure:
                raise PluginError(f"{self.no}: did not start: {generation.failure}")
        except BaseException:
            generation.session.end("it did not take over")
            raise
        old, self._current = self._current, generation
        self._last = generation
        self._living.add(generation)
        self.plan = plan
        switch.at()
        self.proxy.switch(generation.session)
        if self._held:
            self._forgive()
        self.state, self.detail = "running", ""
        number, pid = generation.number, generation.pid
        log.info("plugin_running", plugin=self.no, generation=number, pid=pid)
        self._nursery.start_soon(self._tell_end, generation)
        if old is not None and not old.ended.is_set():
            self._nursery.start_soon(self._drain, old)
        self._want_spare()
        self._wake.set()

    async def _promote(self, plan: Plan) -> Generation | None:
        """Let the spare serve, if there is one of the right kind and it does."""
        spare = self._spare.take(plan.package)
        if spare is None:
            return None
        self._starting = spare
        try:
            secrets = await self._open_secrets(plan.package.manifest)
            spare.promote(self._identity(plan, spare.number), secrets)
            await spare.session.granted.wait()
        finally:
            self._starting = None
        if spare.session.failure:
            log.warning("plugin_spare_failed", plugin=self.no, reason=spare.failure)
            return None
        return spare

    def _want_spare(self) -> None:
        wanted = self._rules.spare or self.manifest.spare
        self._spare.want(self.plan.package if wanted and not self._held else None)

    async def _make_spare(self, package: Package) -> Generation:
        number = await self._next_generation()
        plan = msgspec.structs.replace(self.plan, package=package, config={}, config_number=0)
        return self._make(plan, number, None, spare=True)

    async def _launch(self, plan: Plan) -> Generation:
        """Start a process from nothing; it serves when this returns. Raises PluginError."""
        assert self._nursery is not None
        number = await self._next_generation()
        secrets = await self._open_secrets(plan.package.manifest)
        generation = self._starting = self._make(plan, number, secrets)
        del secrets
        try:
            await self._nursery.start(generation.run)
        finally:
            self._starting = None
        return generation

    def _make(
        self, plan: Plan, number: int, secrets: dict[str, str] | None, *, spare: bool = False
    ) -> Generation:
        manifest = plan.package.manifest
        spec = LaunchSpec(
            manifest=manifest,
            generation=number,
            plugin_dir=plan.package.folder,
            data_dir=plan.package.folder.parent / "data",
            # Short, since a socket's path is; unlike for two plugins whose numbers begin alike.
            runtime_dir=self._around.runtime_dir / f"{crc32(self.no.encode()):08x}.{number}",
            digest=plan.package.digest,
        )
        identity = self._identity(plan, number)
        # While another serves, nobody waits for this one.
        polite = spare or self.proxy.ready
        return Generation(
            *(spec, identity, self._around, self.ring, secrets),
            waited_for_s=self._waited_for_s,
            spare=spare,
            polite=polite,
        )

    def _waited_for_s(self) -> float:
        """How long, in all, messages have waited for answers; observers' calls hold up nobody."""
        lines = self.proxy.lines
        return sum(
            line.record.total_s for hook, line in lines.items() if hook not in OBSERVING_HOOKS
        )

    def _identity(self, plan: Plan, number: int) -> Identity:
        return Identity(
            manifest=plan.package.manifest,
            generation=number,
            config_json=plan.config_json,
            config_number=plan.config_number,
            max_payload_bytes=self._server.max_payload_bytes,
            host_version=self._server.host_version,
            space=plan.package.space,
        )

    async def _tell_end(self, generation: Generation) -> None:
        await generation.ended.wait()
        self._living.discard(generation)
        if generation is self._current:
            self._wake.set()

    async def _drain(self, old: Generation) -> None:
        with trio.move_on_after(DRAIN_S):
            await old.session.wait_idle()
        if old.session.open_calls:
            old.session.end("the drain limit has passed")
        await old.stop("reload")
