"""Starts the attacking plugin in a named configuration and tells how each attack ended.

Configurations: `none` (a process like any child of the server), `hygiene` (the sandbox off),
`full` (the sandbox without a control group), `full+cgroup`; with `+subprocesses` for plugins whose
manifest asks for subprocesses, with `+egress` for those with hosts that they may reach. `real` and
`real+cgroup` are the same for a plugin whose environment, data and way out are real, see `real`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from tests.attacks.catalogue import ATTACKS
from tests.attacks.real import DEPENDENCY, install, way_out, with_environment
from tests.attacks.targets import Targets
from wkhost.plugin_host.fair import FairShare, Machine
from wkhost.plugin_host.generation import EGRESS_SOCKET
from wkhost.plugin_host.grpc import listen_unix
from wkhost.plugin_host.manifest import parse_manifest
from wkhost.plugin_host.process import Launcher, LaunchSpec, Places, PlainLauncher, Process
from wkhost.plugin_host.sandbox.ability import find_ability
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import SandboxPolicy

PLUGIN = Path(__file__).with_name("plugin")
TIMEOUT_S = 40
PATIENCE_S = 4
"""The host looks once a second at what no layer of the kernel limits."""
ARRIVAL_S = 5
SETTLE_S = 2
"""Where there is no quota, the host has to see twice that too much CPU is used."""
MANIFEST = """
[plugin]
no = "attacker"
version = "1"
[run]
main = "main.py"
[limits]
memory_mb = 384
open_files = 256
file_mb = 64
processes = 64
cpu_percent = {cpu}
data_mb = 100
data_files = 5000
[sandbox]
subprocesses = {subprocesses}
[capabilities]
egress = {egress}
"""
_LINE = re.compile(r"^(BEGIN|END) (\w+)(?: (.*))?$", re.MULTILINE)


class Ended(msgspec.Struct, frozen=True):
    """How one process ended: what it printed and in which words the host tells its end."""

    output: str
    end: str


class Arena:
    """One configuration. `scratch` says where disk attacks write: "tmp" or "data"."""

    def __init__(self, folder: Path, it: Targets, configuration: str, scratch: str = "tmp") -> None:
        self.folder = folder
        self.configuration = configuration
        self._targets = it
        self._contained = configuration not in ("none", "hygiene")
        self._real = "real" in configuration
        self._plugins = folder / "plugins"
        self._scratch = "data" if self._real else scratch
        self._count = 0
        self._code = folder / "code"
        if not self._code.exists():
            shutil.copytree(PLUGIN, self._code, ignore=shutil.ignore_patterns("__pycache__"))

    async def run(self, names: Sequence[str]) -> dict[str, str]:
        """Return attack -> outcome."""
        together = [name for name in names if not ATTACKS[name].alone]
        found = await self._attack(together) if together else {}
        for name in names:
            if ATTACKS[name].alone:
                found.update(await self._attack([name]))
        return found

    async def _attack(self, names: list[str]) -> dict[str, str]:
        self._count += 1
        spec = self._layout(names)
        data_dir = spec.data_dir
        data_dir.mkdir(mode=0o700)
        # A folder that nobody has used: nothing is stopped by what an earlier attack left.
        for planted in ("host/planted", "open/planted"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / planted).unlink()
        plan = {
            "attacks": names,
            "targets": self._targets.plain,
            "scratch": self._scratch,
            "patience": PATIENCE_S if self._contained else 0,
            "looks": 1 if self._contained else 6,
            "settle": SETTLE_S if self._contained and "cgroup" not in self.configuration else 0,
            "real": {"dependency": DEPENDENCY} if self._real else None,
        }
        (data_dir / "plan.json").write_text(json.dumps(plan))
        before = dict(self._targets.received)
        with self._caller("N04" in names):
            if self.configuration == "none":
                ended = await trio.to_thread.run_sync(self._naked, data_dir)
            else:
                ended = await self._launched(spec)
        found = outcomes(names, ended)
        if self._real and not self._was_real(ended, before):
            return dict.fromkeys(names, f"error nothing was real: {ended.output[-500:]}")
        if "NOBODY" in ended.output and found.get("N04") == "escaped":
            # Not a refusal, but the host has tried to connect all the while.
            found["N04"] = "no arrival"
        self._verify(found, before)
        shutil.rmtree(data_dir)
        return found

    def _layout(self, names: list[str]) -> LaunchSpec:
        runtime_dir = self.folder / f"run-{self._count}"
        listed = self._targets.plain["listed"] if self._real else "example.com:443"
        text = MANIFEST.format(
            cpu=20 if names == ["R06"] else 100,
            subprocesses="true" if "subprocesses" in self.configuration else "false",
            egress=json.dumps([listed] if self._real or "egress" in self.configuration else []),
        )
        if self._real:
            package = install(self._code, text, self._plugins)
            folder = package.folder
            data_dir = folder.parent / "data"
            return LaunchSpec(package.manifest, self._count, folder, data_dir, runtime_dir)
        data_dir = self.folder / f"data-{self.configuration}-{self._count}"
        manifest = parse_manifest(text.encode())
        return LaunchSpec(manifest, self._count, self._code, data_dir, runtime_dir)

    async def _launched(self, spec: LaunchSpec) -> Ended:
        runtime_dir = spec.runtime_dir
        runtime_dir.mkdir(mode=0o700)
        process = self._launcher().launch(spec)
        chunks: list[bytes] = []
        try:
            with trio.fail_after(TIMEOUT_S):
                async with trio.open_nursery() as nursery:
                    for descriptor in process.outputs.values():
                        nursery.start_soon(_read, descriptor, chunks)
                    self._keep_fair(nursery, process, spec)
                    egress = ""
                    if self._real:
                        port = self._targets.listed_port
                        await nursery.start(way_out(spec, process.owns, port).run)
                        egress = str(process.places.runtime_dir / EGRESS_SOCKET)
                    with listen_unix(runtime_dir / "s"):
                        line = control_line(process.places, spec.manifest.main, egress)
                        await process.release(line)
                        status = await process.wait()
                    # A survivor may hold the output open.
                    await trio.sleep(0.2)
                    nursery.cancel_scope.cancel()
                    end = process.exit_text(status)
        finally:
            process.signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
            process.close()
            shutil.rmtree(runtime_dir)
        return Ended(b"".join(chunks).decode("utf-8", "replace"), end)

    def _keep_fair(self, nursery: trio.Nursery, process: Process, spec: LaunchSpec) -> None:
        """As for a plugin that serves while no message waits for it."""
        if process.brake is not None:
            fair = FairShare(
                process.brake,
                Machine(),
                name=spec.manifest.no,
                limit=spec.manifest.limits.cpu_percent / 100,
                waited_for_s=lambda: 0.0,
                polite=False,
            )
            fair.serves()
            nursery.start_soon(fair.keep)

    def _was_real(self, ended: Ended, before: dict[str, int]) -> bool:
        """Whether it could use its package, and its way out to the one host that it may reach."""
        return "REAL" in ended.output and self._arrived("listed", before)

    def _launcher(self) -> Launcher:
        if self.configuration == "hygiene":
            return PlainLauncher()
        ability = find_ability()
        if self._real:
            ability = with_environment(ability, self._targets.python)
        if "cgroup" not in self.configuration:
            without = {"memory": "left out", "cpu": "left out"}
            ability = msgspec.structs.replace(
                ability,
                groups=None,
                held=ability.held - set(without),
                missing={**ability.missing, **without},
            )
        private = (self.folder / "host",)
        return SandboxLauncher(SandboxPolicy(), self._plugins, private=private, ability=ability)

    def _naked(self, data_dir: Path) -> Ended:
        """A child as a careless server would start it: everything is inherited."""
        environment = {
            **os.environ,
            "HOME": str(data_dir),
            "WK_HOST_SECRET": "SECRET",
            "PYTHONBREAKPOINT": "0",
        }
        master, slave = pty.openpty()

        def careless() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        for name in ("leaked_file", "leaked_dir"):
            os.set_inheritable(self._targets.plain[name], True)
        process = subprocess.Popen(
            [sys.executable, str(self._code / "main.py")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            close_fds=False,
            preexec_fn=careless,
        )
        os.close(slave)
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        assert process.stdout is not None
        output = bytearray()
        # Not until the end of the stream: a daemon may hold it open.
        while b"DONE" not in output and (data := os.read(process.stdout.fileno(), 65536)):
            output += data
        process.wait()
        timer.cancel()
        process.stdout.close()
        os.close(master)
        code = process.returncode
        end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return Ended(output.decode("utf-8", "replace"), end)

    @contextlib.contextmanager
    def _caller(self, wanted: bool):  # type: ignore[no-untyped-def]
        """Somebody on the host who tries to connect to a plugin that listens."""
        over = threading.Event()

        def connect() -> None:
            while not over.wait(0.02):
                with contextlib.suppress(OSError), socket.socket() as sock:
                    sock.settimeout(1)
                    sock.connect(("127.0.0.1", self._targets.free_port))

        thread = threading.Thread(target=connect, daemon=True)
        if wanted:
            thread.start()
        yield
        over.set()
        if wanted:
            thread.join()

    def _verify(self, found: dict[str, str], before: dict[str, int]) -> None:
        """An attack's own word is not enough where the host can see the effect."""
        arrivals = {"N01": "tcp", "N03": "tcp6", "N05": "udp", "N07": "tcp", "N08": "tcp"}
        arrivals |= dict.fromkeys(("N13", "N14", "N15", "N16"), "tcp")
        arrivals |= {"U01": "socket", "U02": "abstract", "U03": "datagram", "U05": "link"}
        for name, target in arrivals.items():
            if found.get(name) == "escaped" and not self._arrived(target, before):
                found[name] = "no arrival"
        if "P02" in found:
            within_s = ARRIVAL_S if found["P02"] == "escaped" else 0.3
            signalled = self._targets.victim_was_signalled(within_s)
            if (found["P02"] == "escaped") != signalled:
                found["P02"] = f"error signalled: {signalled}"
        if found.get("P11") == "escaped":
            found["P11"] = "escaped" if self._reap_daemons() else "reaped"

    def _arrived(self, target: str, before: dict[str, int]) -> bool:
        """The thread that counts may need a moment."""
        deadline = time.monotonic() + ARRIVAL_S
        while self._targets.received[target] <= before[target]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _reap_daemons(self) -> int:
        survivors = 0
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() == self._targets.plain["daemon"]:
                    survivors += 1
                    os.kill(int(path.parent.name), signal.SIGKILL)
        return survivors


def outcomes(names: Sequence[str], ended: Ended) -> dict[str, str]:
    """Read the lines; an attack that began and has no end is what the process died of."""
    found: dict[str, str] = {}
    for kind, name, outcome in _LINE.findall(ended.output):
        found[name] = outcome if kind == "END" else _death(ended)
    for name in names:
        found.setdefault(name, f"error never ran: {ended.end}: {ended.output[-500:]}")
    return found


def _death(ended: Ended) -> str:
    if "killed by the host" in ended.end or "more than its" in ended.end:
        return "SIGKILL"
    match = re.search(r"killed by (SIG\w+)", ended.end)
    return match[1] if match else f"error ended: {ended.end}: {ended.output[-500:]}"


def control_line(places: Places, main: str, egress: str = "") -> bytes:
    fields = {
        "socket": str(places.runtime_dir / "s"),
        "token": "00" * 32,
        "protocol": 1,
        "plugin_dir": str(places.plugin_dir),
        "data_dir": str(places.data_dir),
        "main": main,
    }
    if egress:
        fields["egress"] = egress
    return json.dumps(fields).encode() + b"\n"


async def _read(descriptor: int, chunks: list[bytes]) -> None:
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        data = os.read(descriptor, 65536)
        if not data:
            return
        chunks.append(data)
