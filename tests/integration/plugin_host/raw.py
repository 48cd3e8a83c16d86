"""Plugins without the SDK: a program on plain grpcio that behaves as its first argument says."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

_PROGRAM = """
import json, os, queue, sys, threading, time
sys.path.insert(0, {root!r})
import grpc
from plugin_sdk.wire.v1 import plugin_pb2 as pb, host_pb2, host_pb2_grpc, plugin_pb2_grpc

mode = sys.argv[1]
control = json.loads(os.fdopen(3).readline())
token = bytes.fromhex(control["token"])
channel = grpc.insecure_channel("unix:" + control["socket"])
out = queue.Queue()

def frames(q):
    while (frame := q.get()) is not None:
        yield frame

def hello(**fields):
    values = dict(token=token, protocol_min=1, protocol_max=1, sdk="raw", hooks=["send"])
    values.update(fields)
    out.put(pb.PluginFrame(hello=pb.Hello(**values)))

def credit(calls=1000, size=1 << 24):
    out.put(pb.PluginFrame(credit=pb.Credit(calls=calls, bytes=size)))

def verdicts(continued=(), answers=()):
    out.put(pb.PluginFrame(verdicts=pb.VerdictBatch(continued=continued, verdicts=answers)))

stub = plugin_pb2_grpc.HooksStub(channel)
api = host_pb2_grpc.HostApiStub(channel)
"""

_SERVE = """
stream = stub.Connect(frames(out))
hello()
welcome = next(stream).welcome
credit()
for frame in stream:
    calls = frame.calls
    for call in calls.stop:
        verdicts([call.call_id])
        out.put(None)
    ids = [call.call_id for call in calls.send]
    if not ids:
        continue
"""


def program(body: str, *, serve: bool = True) -> str:
    """Return the source: the handshake and a loop with `body` for each batch, or `body` alone."""
    head = _PROGRAM.format(root=str(ROOT))
    if not serve:
        return head + body
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return f"{head}{_SERVE}{lines}\n"


def write_raw(
    folder: Path,
    body: str,
    *,
    mode: str = "serve",
    no: str = "raw",
    serve: bool = True,
    extra: str = "",
) -> str:
    """Write a plugin that runs `body`; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.py").write_text(program(body, serve=serve))
    (folder / "plugin.toml").write_text(
        f'[plugin]\nno = "{no}"\nversion = "1"\n'
        f'[run]\ncommand = [{sys.executable!r}, "program.py", {mode!r}]\n'
        f"[hooks.send]\npayload = true\n{extra}\n"
    )
    return str(folder)
