"""Each way to break the rules of the stream, many times over: who else notices?

A violation ends its stream, and a real plugin needs a new process for the next one, which takes a
tenth of a second, until the tenth puts it into quarantine. Here another process dials again at
once, so that the count is of violations and not of restarts. HOSTILE_TIMES sets how often (100).

Whoever dials 50 times a second is felt, if only as another process on the same processors. So p99
of the other lane is held against that beside a peer that dials as often and keeps the rules; the
figure of a quiet host is printed too.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import h2.config
import h2.connection
import psutil
import pytest
import trio

from plugin_sdk.wire.v1 import plugin_pb2 as pb
from tests.integration.plugin_host.kit import CLIENT, Running, message, running, write_plugin
from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer, SendCall
from wkhost.hooks.verdict import Continue, Failure, Outcome
from wkhost.plugin_host import calls
from wkhost.plugin_host.calls import Pending
from wkhost.plugin_host.generation import CONNECT
from wkhost.plugin_host.grpc import BidiMethod, GrpcConnection, listen_unix
from wkhost.plugin_host.handshake import Identity
from wkhost.plugin_host.lineage import Lineage
from wkhost.plugin_host.manifest import read_manifest
from wkhost.plugin_host.session import MAX_BATCH_BYTES, Session

pytestmark = pytest.mark.chaos

TIMES = int(os.environ.get("HOSTILE_TIMES", "100"))
MEASURED_TIMES, MEASURED_PER_S = 60, 50.0
PAIRS = 5
FASTEST_PER_S = 2000.0
GROWTH_BYTES = 16 * 1024 * 1024
P99_RATIO = 1.5
PROBES = 300
TOKEN = bytes(range(32))
IDS = list(range(1, 9))


def _verdicts(continued: Sequence[int] = (), answers: Sequence[pb.Verdict] = ()) -> bytes:
    batch = pb.VerdictBatch(continued=continued, verdicts=answers)
    return pb.PluginFrame(verdicts=batch).SerializeToString()


_LARGE = [pb.Verdict(call_id=i, replace=pb.Replace(payload=bytes(140_000))) for i in (1, 2)]
SECOND_STREAM = "second stream"
VIOLATIONS: dict[str, list[bytes]] = {
    SECOND_STREAM: [],
    "unknown id": [_verdicts([2**40])],
    "foreign id": [_verdicts([10**9])],
    "duplicate": [_verdicts([1]), _verdicts([1])],
    "more than outstanding": [_verdicts(range(1, 2000))],
    "oversize batch": [_verdicts(answers=_LARGE)],
    "oversize frame": [bytes(MAX_BATCH_BYTES + 600_000)],
    "empty verdicts": [_verdicts(answers=[pb.Verdict()] * 2000)],
    "unknown outcome": [_verdicts(answers=[pb.Verdict(call_id=1)])],
    "refusal with success": [_verdicts(answers=[pb.Verdict(call_id=1, refuse=pb.Refuse(code=1))])],
    "credit violation": [
        pb.PluginFrame(credit=pb.Credit(calls=2**31, bytes=2**40)).SerializeToString()
    ],
    "second hello": [pb.PluginFrame(hello=pb.Hello(token=TOKEN)).SerializeToString()],
    "no frame": [b"\xff\xff\xff\xff" * 16],
}
HONEST = [_verdicts(IDS)]
REASONS = {
    SECOND_STREAM: "a second stream was opened",
    "unknown id": "which is not outstanding",
    "foreign id": "which is not outstanding",
    "duplicate": "which is not outstanding",
    "more than outstanding": "more verdicts than outstanding",
    "oversize batch": "a frame of 2 verdicts",
    "oversize frame": "a message of 862144 bytes exceeds",
    "empty verdicts": "more verdicts than outstanding",
    "unknown outcome": "unknown outcome",
    "refusal with success": "closed",
    "credit violation": "out of bounds",
    "second hello": "'hello' is not allowed here",
    "no frame": "not a PluginFrame",
}
RIGHT_VERDICTS = {"duplicate": 1}
"""How many calls of a stream are rightly answered before the rule is broken."""

_DIALLER = """
import socket, sys, time
path, times, per_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
size, calls = int(sys.argv[4]), int(sys.argv[5])
data = sys.stdin.buffer.read()
due = time.monotonic()
for _ in range(times):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        try:
            sock.sendall(data[:size])
            heard = b""
            while heard.count(b"the call") < calls and (part := sock.recv(65536)):
                heard += part
            sock.sendall(data[size:])
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        except OSError:
            pass
    due += 1 / per_s
    time.sleep(max(0.0, due - time.monotonic()))
"""


def _bytes_of(frames: Sequence[bytes], *, second_stream: bool = False) -> bytes:
    """Return all that a client sends on one connection."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    # What the host's own windows are is not waited for.
    client.outbound_flow_control_window = 1 << 30
    head = [(":method", "POST"), (":scheme", "http"), (":path", CONNECT), (":authority", "x")]
    client.send_headers(1, [*head, ("content-type", "application/grpc"), ("te", "trailers")])
    out = client.data_to_send()
    for frame in frames:
        content = b"\0" + len(frame).to_bytes(4, "big") + frame
        for at in range(0, len(content), 16384):
            part = content[at : at + 16384]
            out += len(part).to_bytes(3, "big") + b"\0\0" + (1).to_bytes(4, "big") + part
    if second_stream:
        client.send_headers(3, [*head, ("content-type", "application/grpc"), ("te", "trailers")])
        out += client.data_to_send()
    return out


def _hello() -> list[bytes]:
    hello = pb.Hello(token=TOKEN, protocol_min=1, protocol_max=1, sdk="raw", hooks=["send"])
    credit = pb.PluginFrame(credit=pb.Credit(calls=1000, bytes=1 << 24))
    return [pb.PluginFrame(hello=hello).SerializeToString(), credit.SerializeToString()]


class Decisions:
    """Counts what the hostile plugin's calls came to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Why the streams ended."""

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        for _, answer in answers:
            if isinstance(answer, Failure):
                assert answer.outcome is Outcome.CRASH
            self.counts[type(answer).__name__] += 1

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        raise AssertionError("nothing is reloaded here")


def _session(identity: Identity, decisions: Decisions) -> Session:
    session = Session(
        identity,
        TOKEN,
        decisions,
        Lineage(trio.current_time),
        schedule=lambda: None,
        ended=lambda reason: None,
    )
    for call_id in IDS:
        call = SendCall(call_id, message(b"the call", call_id), CLIENT, trio.current_time() + 60)
        assert session.submit(
            Pending(call_id, call, calls.encode_send, calls.SEND_ANSWERS, 5, deadline=call.deadline)
        )
    return session


async def _p99(it: Running) -> float:
    target = it.target("good")
    times = []
    for _ in range(PROBES):
        began = time.perf_counter()
        assert await it.recorder.wait(it.send(target)) == [Continue()]
        times.append(time.perf_counter() - began)
        await trio.sleep(0.002)
    return sorted(times)[int(PROBES * 0.99)]


async def _attacked(
    path: Path, data: bytes, identity: Identity, decisions: Decisions, times: int, per_s: float
) -> None:
    """Serve as many hostile connections as the dialler makes."""

    def handler(session: Session) -> Callable[[], Session]:
        return lambda: session

    listener = listen_unix(path)
    command = [sys.executable, "-I", "-S", "-c", _DIALLER, str(path), str(times), str(per_s)]
    command += [str(len(_bytes_of(_hello()))), str(len(IDS))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as dialler:  # noqa: ASYNC220
        try:
            assert dialler.stdin is not None
            dialler.stdin.write(data)
            dialler.stdin.close()
            for _ in range(times):
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                session = _session(identity, decisions)
                limit = MAX_BATCH_BYTES + identity.max_payload_bytes
                method = BidiMethod(handler(session), limit)
                await GrpcConnection(sock, {CONNECT: method}).run()
                session.lose("the connection is over")
                decisions.reasons[session.failure] += 1
        finally:
            listener.close()
            path.unlink()  # noqa: ASYNC240 - a socket's name
            dialler.kill()


def _identity(tmp_path: Path) -> Identity:
    raw = write_plugin(tmp_path / "raw", "raw")
    return Identity(read_manifest(Path(raw)), 1, b"{}", 1, 512 * 1024, "test")


def _conversation(name: str) -> bytes:
    return _bytes_of([*_hello(), *VIOLATIONS[name]], second_stream=name == SECOND_STREAM)


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_violations_decide_nothing_wrong_and_leave_no_memory(
    name: str, tmp_path: Path
) -> None:
    decisions = Decisions()
    attack = partial(
        _attacked, tmp_path / "h", _conversation(name), _identity(tmp_path), per_s=FASTEST_PER_S
    )
    await attack(Decisions(), 20)
    gc.collect()
    before = psutil.Process().memory_info().rss
    await attack(decisions, TIMES)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    print(f"\n{name}: {TIMES} times, memory {grown / 2**20:+.1f} MiB, {dict(decisions.counts)}")
    assert len(decisions.reasons) == 1
    ((reason, times),) = decisions.reasons.items()
    assert times == TIMES
    assert REASONS[name] in reason
    right = RIGHT_VERDICTS.get(name, 0) * TIMES
    assert decisions.counts["Continue"] == right
    assert decisions.counts["Failure"] == len(IDS) * TIMES - right
    assert set(decisions.counts) <= {"Continue", "Failure"}
    assert grown <= GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", VIOLATIONS)
async def test_violations_are_felt_no_more_than_a_peer_that_keeps_the_rules(
    name: str, tmp_path: Path
) -> None:
    identity = _identity(tmp_path)
    quiet, kept, broken = [], [], []
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "good", "good"))
        await _p99(it)

        async def beside(data: bytes) -> float:
            async with trio.open_nursery() as nursery:
                attack = partial(_attacked, tmp_path / "h", data, identity, Decisions())
                nursery.start_soon(attack, MEASURED_TIMES, MEASURED_PER_S)
                return await _p99(it)

        for _ in range(PAIRS):
            quiet.append(await _p99(it))
            kept.append(await beside(_bytes_of([*_hello(), *HONEST])))
            broken.append(await beside(_conversation(name)))
        assert it.host.info("good").restarts == 0
    ratio = median(each / beside for each, beside in zip(broken, kept, strict=True))
    print(
        f"\n{name}: p99 of the other lane {median(quiet) * 1000:.2f} ms quiet, "
        f"{median(kept) * 1000:.2f} beside a peer that keeps the rules, "
        f"{median(broken) * 1000:.2f} beside one that breaks them, ratio {ratio:.2f}"
    )
    assert ratio <= P99_RATIO
