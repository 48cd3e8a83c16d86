"""A probe sandbox at the start of the server: a layer counts if the attack on it failed, here."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.boot import GO
from wkhost.plugin_host.manifest import Limits
from wkhost.plugin_host.sandbox.bubblewrap import Bubblewrap
from wkhost.plugin_host.sandbox.checks import Expected, check_process
from wkhost.plugin_host.sandbox.command import Sizes, sandbox_command
from wkhost.plugin_host.sandbox.orders import ENVIRONMENT, boot_orders
from wkhost.plugin_host.sandbox.process import Started, control_pair, start, take_report
from wkhost.plugin_host.sandbox.syscalls import TABLES
from wkhost.plugin_host.sandbox.view import PLUGIN, Interpreter, plugin_view

PROBE = Path(__file__).with_name("probe_inside.py")
BOOT_SCRIPT = Path(__file__).parent.with_name("boot.py")
TIMEOUT_S = 20.0
LIMITS = Limits(memory_mb=128, open_files=64, file_mb=1, processes=16)

BLOCKED = {
    "fs": {"ENOENT", "EACCES", "EROFS"},
    "net": {"ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL", "EPERM"},
    "pid": {"ESRCH"},
    "syscalls": {"EPERM", "EAFNOSUPPORT"},
    "landlock": {"EACCES"},
    "processes": {"RuntimeError"},
    "data": {"ENOMEM"},
}
"""Layer -> the only outcomes that show that it stopped the attack."""


class Findings(msgspec.Struct, frozen=True):
    """`held` layers stopped every attack; `broken` says of the others what happened."""

    held: frozenset[str]
    broken: dict[str, str]


def probe(
    bubblewrap: Bubblewrap, python: Interpreter, *, landlock_abi: int, uid: int | None
) -> Findings:
    """Run the probe. Blocks for about 100 ms. Raises PluginError when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="wkhost-probe-") as name:
        folder = Path(name)
        (folder / "secret").write_text("secret")
        (folder / "plugin").mkdir()
        (folder / "data").mkdir()
        (folder / "plugin" / PROBE.name).write_bytes(PROBE.read_bytes())
        for path in (folder / "plugin", folder / "plugin" / PROBE.name, folder / "data"):
            path.chmod(0o755)
            os.chown(path, -1 if uid is None else uid, -1)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.socket(socket.AF_UNIX) as abstract,
        ):
            abstract.bind(f"\0wkhost-probe-{os.getpid()}-{folder.name}")
            abstract.listen()
            targets = {
                "secret": str(folder / "secret"),
                "port": server.getsockname()[1],
                "abstract": abstract.getsockname()[1:].decode(),
                "pid": os.getpid(),
                "add_key": TABLES[os.uname().machine]["add_key"],
                "threads": 2 * LIMITS.processes,
                "bytes": 2 * LIMITS.memory_mb * 1024 * 1024,
            }
            found = _run(bubblewrap, python, folder, targets, landlock_abi, uid)
    return _judge(found)


def _judge(found: dict[str, list[tuple[str, str]]]) -> Findings:
    broken: dict[str, str] = {}
    for layer, attacks in found.items():
        wrong = [f"{name}: {end}" for name, end in attacks if end not in BLOCKED[layer]]
        if wrong:
            broken[layer] = f"an attack on it was not stopped ({'; '.join(wrong)})"
    return Findings(frozenset(BLOCKED) - set(broken), broken)


def _run(
    bubblewrap: Bubblewrap,
    python: Interpreter,
    folder: Path,
    targets: dict[str, Any],
    landlock_abi: int,
    uid: int | None,
) -> dict[str, list[tuple[str, str]]]:
    view = plugin_view(
        python,
        BOOT_SCRIPT,
        plugin_dir=folder / "plugin",
        data_dir=folder / "data",
        socket_dir=None,
        private=(),
    )
    run = {"script": str(PLUGIN / PROBE.name), "args": [json.dumps(targets)]}
    # With internet sockets allowed by the filter, only the namespace can stop the connection.
    orders = boot_orders(
        run, LIMITS, view, subprocesses=False, landlock_abi=landlock_abi, internet=True
    )
    ours, theirs = control_pair()
    command = sandbox_command(
        *(bubblewrap, view, ENVIRONMENT, python.executable, theirs.fileno()),
        sizes=Sizes(),
        uid=uid,
    )
    try:
        started = start(command, ours, theirs, orders)
    except OSError as error:
        raise PluginError(f"{bubblewrap.path}: {error.strerror}") from error
    with started.control as control:
        control.settimeout(TIMEOUT_S)
        return _talk(started, os.geteuid() if uid is None else uid)


def _talk(started: Started, uid: int) -> dict[str, list[tuple[str, str]]]:
    popen = started.popen
    try:
        report = take_report(started.control)
        if report is not None:
            check_process(report[0], Expected(uid))
            started.control.sendall(GO)
        out, err = popen.communicate(timeout=TIMEOUT_S)
    except TimeoutError as error:
        raise PluginError(f"the probe did not answer within {TIMEOUT_S:.0f} s") from error
    finally:
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGKILL)
            popen.communicate()
    try:
        return msgspec.json.decode(out, type=dict[str, list[tuple[str, str]]])
    except msgspec.DecodeError:
        lines = err.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {popen.returncode}"
        raise PluginError(f"the probe did not run: {ascii(reason)[1:-1][:300]}") from None
