"""One process of a plugin, from launch to reaped, with its socket, its stream and its output.

Theory of operation. `run` launches the process, hands it the token, waits for the one peer that
belongs to it, serves gRPC and calls `started` when the plugin has granted credit. The session ends
first (stream closed, process gone, rule broken, or asked to stop), which answers all calls at once;
only then is the process ended and reaped. Nothing of it is left when `run` returns.
"""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from wkhost.errors import PluginError
from wkhost.hooks.target import Answers
from wkhost.plugin_host import calls, hung
from wkhost.plugin_host.auditor import Auditor
from wkhost.plugin_host.egress import EgressProxy
from wkhost.plugin_host.egress_records import EgressRecords
from wkhost.plugin_host.egress_rules import EgressRules, PrivateTarget
from wkhost.plugin_host.fair import Brake, FairShare, Machine
from wkhost.plugin_host.grpc import (
    BidiMethod,
    GrpcConnection,
    Limits,
    Methods,
    PeerCred,
    UnaryMethod,
    accept_one,
    listen_unix,
)
from wkhost.plugin_host.handshake import PROTOCOL, Identity
from wkhost.plugin_host.lineage import Lineage
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.output import HOST_STREAM, LogRing, escape, read_output, said
from wkhost.plugin_host.process import Launcher, LaunchSpec, Places, Process
from wkhost.plugin_host.session import MAX_BATCH_BYTES, Session

CONNECT = "/wkhost.plugin.v1.Hooks/Connect"
EGRESS_SOCKET = "e"
START_TIMEOUT_S = 20.0
"""From launch to the first credit; importing what a plugin needs is its longest part."""
STOP_BUDGET_S = 5.0
EXIT_GRACE_S = 2.0
"""Between the answer to `stop` (or the end of the stream) and SIGTERM, and again to SIGKILL."""
BROKEN_GRACE_S = 0.3
"""The same where nobody asked it to stop: it is ending by itself, or hangs."""
LAST_OUTPUT_S = 0.2
"""How long a descendant that still holds the output may delay the end."""

log = structlog.get_logger(__name__)

HostApi = Callable[[Session], dict[str, UnaryMethod]]


class Surroundings(msgspec.Struct, frozen=True):
    """What all generations of all plugins share."""

    runtime_dir: Path
    launcher: Launcher
    answers: Answers
    lineage: Lineage
    schedule: Callable[[Session], None]
    host_api: HostApi
    auditor: Auditor
    open_secrets: Callable[[str, list[str]], dict[str, str]]
    """Number and names -> those values that are set. Blocks. Raises PluginError."""
    egress_private: tuple[PrivateTarget, ...] = ()
    egress_on: bool = True
    """False: no plugin gets a way out, whatever its manifest allows."""
    egress_records: EgressRecords = msgspec.field(default_factory=EgressRecords)
    machine: Machine = msgspec.field(default_factory=Machine)


class Generation:
    """See the module. `ended` is set when the session is over, `gone` when all is reaped."""

    def __init__(
        self,
        spec: LaunchSpec,
        identity: Identity,
        around: Surroundings,
        ring: LogRing,
        secret_values: Mapping[str, str] | None = None,
        *,
        waited_for_s: Callable[[], float],
        spare: bool = False,
        polite: bool = False,
    ) -> None:
        """A `spare` is started and contained, and waits for `promote`: until then it has no token,
        no settings and no secrets. `waited_for_s`, `polite`: see `FairShare`."""
        self.spec = spec
        self.number = spec.generation
        self.pid = 0
        self.started_at = trio.current_time()
        self.ended = trio.Event()
        self.gone = trio.Event()
        self._around = around
        self._ring = ring
        self.egress: EgressProxy | None = None
        """Its way out, where the manifest lists hosts."""
        self._exited = trio.Event()
        self._exit = ""
        self._stopping = False
        self._no = spec.manifest.no
        self._token = secrets.token_bytes(32)
        self.session = Session(
            identity,
            self._token,
            around.answers,
            around.lineage,
            schedule=lambda: around.schedule(self.session),
            ended=self._note_end,
            secrets=secret_values,
        )
        self._spare = spare
        self._waited_for_s = waited_for_s
        self._polite = polite
        self._fair: FairShare | None = None
        self._wanted = trio.Event()
        if not spare:
            self._wanted.set()

    def __repr__(self) -> str:
        return f"<Generation {self._no} g{self.number} pid {self.pid}>"

    def promote(self, identity: Identity, secret_values: Mapping[str, str] | None) -> None:
        """A spare is to serve now; `session.granted` tells when it does, or that it has ended."""
        self.session.use(identity)
        self.session.give_secrets(secret_values)
        self.started_at = trio.current_time()
        self._start_is_urgent()
        self._wanted.set()

    def use_manifest(self, manifest: Manifest) -> None:
        """Let other rights hold from the next call on. A way out that did not exist stays shut."""
        session = self.session
        identity = msgspec.structs.replace(
            session.identity, manifest=manifest, config_number=session.config_number
        )
        session.use(identity)
        if self.egress is not None:
            allowed = manifest.capabilities.egress
            self.egress.rules = EgressRules(allowed, self._around.egress_private)

    def _note_end(self, reason: str) -> None:
        self.ended.set()
        self._wanted.set()

    @property
    def failure(self) -> str:
        """Why it ended, in one sentence. Where the process's end says more, that is told."""
        reason = self.session.failure
        if self._exit and self.session.lost:
            reason = f"the process {self._exit}"
        last = said(self._ring.last_text(self.number))
        if not last or self._stopping or reason in last:
            return reason
        return f"{reason} (last line: {last[:300]})"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live one life. Raises PluginError if it ends before it has granted credit."""
        folder = self.spec.runtime_dir
        process: Process | None = None
        granted = False
        try:
            folder.mkdir(mode=0o700, parents=True)
            self.spec.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            process = self._around.launcher.launch(self.spec)
            self.pid = process.pid
            self._tell(process.note)
            if self._around.launcher.layers(self.spec.manifest).get("sandbox") == "OFF":
                self._around.auditor.deny(self._no, "sandbox_off", "by the configuration")
            granted = await self._live(process, task_status)
        finally:
            self.session.end("the generation was cancelled")
            if process is not None:
                await self._reap(process)
            shutil.rmtree(folder, ignore_errors=True)
            self.gone.set()
        self._tell(self.failure)
        if not granted:
            raise PluginError(f"{self._no}: did not start: {self.failure}")

    async def stop(self, reason: str) -> None:
        """Ask the plugin to stop, at most `STOP_BUDGET_S`, then end it; returns when reaped."""
        self._stopping = True
        session = self.session
        answered = trio.Event()
        if session.alive and session.submit(
            calls.stop(reason, STOP_BUDGET_S, lambda answer: answered.set())
        ):
            with trio.move_on_after(STOP_BUDGET_S):
                await answered.wait()
            if answered.is_set():
                with trio.move_on_after(EXIT_GRACE_S):
                    await self.ended.wait()
        session.end(f"stopped ({reason})")
        await self.gone.wait()

    # --- parts of `run` -------------------------------------------------------------------------

    async def _live(self, process: Process, task_status: trio.TaskStatus[None]) -> bool:
        """Serve until the session is over and the process ended; return whether it had started."""
        session = self.session
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_exit, process)
            if process.brake is not None:
                self._fair = self._make_fair_share(process.brake)
                nursery.start_soon(self._fair.keep)
            readers = [
                self._start_reader(nursery, stream, descriptor)
                for stream, descriptor in process.outputs.items()
            ]
            self.egress = self._make_egress(process)
            if self.egress is not None:
                await nursery.start(self.egress.run)
            nursery.start_soon(self._serve, process)
            await self._wanted.wait()
            with trio.move_on_after(START_TIMEOUT_S):
                await session.granted.wait()
            if not session.granted.is_set():
                session.end(f"no handshake within {START_TIMEOUT_S:.0f} s")
            granted = not session.failure
            if granted:
                self._tell("running")
                self._start_is_urgent()
                nursery.start_soon(hung.watch, session)
                task_status.started()
            await self.ended.wait()
            await self._end_process(process)
            with trio.move_on_after(LAST_OUTPUT_S):
                for finished in readers:
                    await finished.wait()
            nursery.cancel_scope.cancel()
        return granted

    def _make_fair_share(self, brake: Brake) -> FairShare:
        return FairShare(
            brake,
            self._around.machine,
            name=f"{self._no} g{self.number}",
            limit=self.spec.manifest.limits.cpu_percent / 100,
            waited_for_s=self._waited_for_s,
            polite=self._polite,
        )

    @property
    def held_to(self) -> float | None:
        """The cores that it is held to because it gives way, None while it is free."""
        return None if self._fair is None else self._fair.share

    def _start_is_urgent(self) -> None:
        if self._fair is not None:
            self._fair.serves()

    def _start_reader(self, nursery: trio.Nursery, stream: str, descriptor: int) -> trio.Event:
        finished = trio.Event()

        async def read() -> None:
            await read_output(descriptor, self._ring, self.number, stream)
            finished.set()

        nursery.start_soon(read)
        return finished

    async def _watch_exit(self, process: Process) -> None:
        # Its calls are decided before its end is told: with the sandbox that takes longer.
        await process.died()
        self.session.lose("the process ended")
        self._exit = process.exit_text(await process.wait())
        self._exited.set()

    async def _end_process(self, process: Process) -> None:
        """Let it end, then make it end; returns when it has."""
        session = self.session
        grace = EXIT_GRACE_S if self._stopping else BROKEN_GRACE_S
        signals = (signal.SIGKILL,) if session.broken else (0, signal.SIGTERM, signal.SIGKILL)
        for number in signals:
            if number:
                process.signal(number)
            with trio.move_on_after(grace):
                await self._exited.wait()
            if self._exited.is_set():
                return
        await self._exited.wait()

    async def _reap(self, process: Process) -> None:
        """After this neither process nor descriptor is left, whatever ended the generation."""
        process.signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            # SIGKILL was sent: the wait is for the kernel alone.
            await process.wait()
        process.close()

    async def _serve(self, process: Process) -> None:
        path = self.spec.runtime_dir / "s"
        listener = listen_unix(path)
        try:
            if self._spare:
                await process.release(self._first_line(process.places), more=True)
                self.pid = process.pid
                await self._wanted.wait()
            await process.release(self._control_line(process.places))
        except PluginError as wrong:
            listener.close()
            log.error("plugin_not_contained", plugin=self._no, reason=str(wrong))
            self.session.break_off(str(wrong))
            return
        except BaseException:
            listener.close()
            raise
        self.pid = process.pid
        sock, cred = await accept_one(listener, partial(self._check_peer, process))
        cred.close()
        limits = Limits(calls_per_s=self.spec.manifest.limits.calls_per_s)
        error = await GrpcConnection(sock, self._methods(), limits=limits).run()
        if error is None:
            self.session.lose("the connection was closed")
        else:
            self.session.break_off(f"the connection broke the protocol ({error})")

    def _make_egress(self, process: Process) -> EgressProxy | None:
        allowed = self.spec.manifest.capabilities.egress
        if not allowed or not self._around.egress_on:
            return None
        return EgressProxy(
            self.spec.runtime_dir / EGRESS_SOCKET,
            EgressRules(allowed, self._around.egress_private),
            may_connect=process.owns,
            denied=partial(self._around.auditor.deny, self._no, "egress_denied"),
            record=self._around.egress_records.of(self._no),
        )

    def _methods(self) -> Methods:
        limit = MAX_BATCH_BYTES + self.session.identity.max_payload_bytes
        stream = BidiMethod(lambda: self.session, limit)
        return {CONNECT: stream, **self._around.host_api(self.session)}

    def _check_peer(self, process: Process, cred: PeerCred) -> bool:
        if process.owns(cred.pid):
            return True
        log.warning("plugin_impostor_refused", plugin=self._no, pid=cred.pid, uid=cred.uid)
        self._around.auditor.deny(self._no, "impostor", f"uid {cred.uid}, process {cred.pid}")
        self._tell(f"refused a connection from process {cred.pid}, which is not the plugin's")
        return False

    def _first_line(self, places: Places) -> bytes:
        """What a spare may know: where its code is. A program without the SDK waits unprepared."""
        main = self.spec.manifest.main
        if not main:
            return b""
        line = {"prepare": {"plugin_dir": str(places.plugin_dir), "main": main}}
        return msgspec.json.encode(line) + b"\n"

    def _control_line(self, places: Places) -> bytes:
        line = {
            "socket": str(places.runtime_dir / "s"),
            "token": self._token.hex(),
            "protocol": PROTOCOL,
            "plugin_dir": str(places.plugin_dir),
            "data_dir": str(places.data_dir),
            "main": self.spec.manifest.main,
        }
        if self.egress is not None:
            line["egress"] = str(places.runtime_dir / EGRESS_SOCKET)
        return msgspec.json.encode(line) + b"\n"

    def _tell(self, text: str) -> None:
        self._ring.add(self.number, HOST_STREAM, escape(text))
