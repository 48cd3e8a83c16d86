"""An impostor: a process of the server's own user that wants to be the plugin, and a spent token.

The stranger watches the sockets of generations and dials each as soon as it is there, and again all
the time. The second plugin has a right token of its own and uses it twice.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from wkhost.bench.errors import BenchError
from wkhost.bench.faults.trial import Trial
from wkhost.link import contract as c
from wkhost.link.runtime import find_link_socket

_STRANGER = """
import glob, json, os, select, socket, sys, time
PREFACE = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + b"\\x04" + bytes(5)
known, counts = {}, {"dials": 0, "refused": 0, "answered": 0, "sockets": 0}
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in glob.glob(sys.argv[1] + "/*/s"):
        known.setdefault(path, 0)
    for path in list(known)[-20:]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(0.3)
            try:
                sock.connect(path)
            except OSError:
                counts["refused"] += 1
                continue
            counts["dials"] += 1
            known[path] += 1
            try:
                sock.sendall(PREFACE)
                counts["answered"] += bool(sock.recv(4096))
            except OSError:
                pass
    time.sleep(0.001)
counts["sockets"] = sum(1 for count in known.values() if count)
print(json.dumps(counts))
"""

_SPENDER = """
import json, os, queue, sys, time
sys.path.insert(0, {root!r})
import grpc
from plugin_sdk.wire.v1 import plugin_pb2 as pb, plugin_pb2_grpc

control = json.loads(os.fdopen(3).readline())
token = bytes.fromhex(control["token"])
hello = pb.PluginFrame(hello=pb.Hello(
    token=token, protocol_min=1, protocol_max=1, sdk="raw", hooks=["persist_after"]))

def frames(out):
    while (frame := out.get()) is not None:
        yield frame

streams = []

def welcomed(channel, out, **options):
    out.put(hello)
    stream = plugin_pb2_grpc.HooksStub(channel).Connect(frames(out), **options)
    streams.append(stream)
    try:
        return next(stream).HasField("welcome")
    except (grpc.RpcError, StopIteration):
        return False

channel, out = grpc.insecure_channel("unix:" + control["socket"]), queue.Queue()
print("first use:", welcomed(channel, out), flush=True)
out.put(pb.PluginFrame(credit=pb.Credit(calls=10, bytes=1 << 20)))
time.sleep(0.3)
again = grpc.insecure_channel(
    "unix:" + control["socket"], options=[("grpc.use_local_subchannel_pool", 1)])
print("second dial:", welcomed(again, queue.Queue(), timeout=3), flush=True)
print("second stream:", welcomed(channel, queue.Queue(), timeout=3), flush=True)
time.sleep(60)
"""


async def impostor(trial: Trial) -> None:
    """Dials before, while and after the real plugin; second uses of a token."""
    data_dir = trial.site.server.data_dir
    assert data_dir is not None
    sockets = find_link_socket(data_dir).parent / "p"
    async with trial.under_load():
        async with _stranger(sockets) as counts:
            for _ in range(trial.options.repeats):
                at = trio.current_time()
                await trial.site.reload()
                trial.notes["slowest reload, ms"] = max(
                    float(trial.notes.get("slowest reload, ms", 0)),
                    round((trio.current_time() - at) * 1000, 1),
                )
            await trio.sleep(0.5)
        before = await trial.site.plugin()
        uses = await _spent_tokens(trial)
        after = await trial.site.plugin()
    trial.notes["sockets dialled before the plugin"] = counts["sockets"]
    trial.notes["connections closed unread"] = counts["dials"] - counts["answered"]
    trial.notes["dials that found no socket"] = counts["refused"]
    trial.notes["second uses of a token"] = len(uses)
    if counts["answered"]:
        trial.broken.append("an impostor was answered")
    if any(line.endswith("True") for line in uses):
        trial.broken.append("a token was taken twice")
    if not uses:
        trial.broken.append("no token was used twice: this shows nothing")
    if not counts["sockets"]:
        trial.broken.append("the impostor never found a socket: this shows nothing")
    if (before.generation, before.pid) != (after.generation, after.pid):
        trial.broken.append("the guard did not survive another plugin's spent token")
    if trial.by_policy:
        trial.broken.append(f"{trial.by_policy} messages were refused")


@asynccontextmanager
async def _stranger(sockets: Path) -> AsyncIterator[dict[str, int]]:
    """Run the stranger for the time of the block; its counts are there afterwards."""
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes a millisecond
        [sys.executable, "-I", "-S", "-c", _STRANGER, str(sockets)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    counts: dict[str, int] = {}
    try:
        yield counts
        output, _ = await trio.to_thread.run_sync(lambda: process.communicate(b"\n", timeout=10))
        counts.update(json.loads(output))
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise BenchError(f"the impostor did not report: {error}") from error
    finally:
        process.kill()
        process.wait()


async def _spent_tokens(trial: Trial) -> list[str]:
    """Let a plugin use its token twice; return what it says of every second use."""
    folder = trial.folder / "spender"
    folder.mkdir()
    spec = importlib.util.find_spec("plugin_sdk")
    if spec is None or spec.origin is None:
        raise BenchError("plugin_sdk is not installed beside wkhost")
    root = Path(spec.origin).parent.parent
    (folder / "program.py").write_text(_SPENDER.format(root=str(root)), encoding="utf-8")
    (folder / "plugin.toml").write_text(
        '[plugin]\nno = "spender"\nversion = "1.0.0"\nstage = "observe"\n'
        f"[run]\ncommand = {json.dumps([sys.executable, 'program.py'])}\n[hooks.persist_after]\n",
        encoding="utf-8",
    )
    await trial.site.install(folder)
    found: list[str] = []
    with trio.move_on_after(15):
        while len(found) < 2:
            logs = await trial.site.ask(c.GetPluginLogs("spender", limit=200), c.PluginLogs)
            found = [line for line in logs.lines if " second " in line]
            await trio.sleep(0.05)
    await trial.site.ask(c.PluginAction("spender", "uninstall"), c.PluginStatus)
    return found
