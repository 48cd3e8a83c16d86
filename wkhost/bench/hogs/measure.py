"""Windows with and without a hog, in turns on one server: what the good plugin's users notice.

Theory of operation. The good plugin is moderation, on every message's way. The hog is enabled for
one window of each pair and disabled for the other, in alternating order, so that what else happens
on the machine hits both alike. Some messages go to the hog's own channel and to an offline user, so
that each hook of the hog has work.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from statistics import median
from typing import TypeVar

import httpx
import msgspec

from wkhost.bench.errors import BenchError
from wkhost.bench.hogs.kinds import CHANNEL, KINDS, NO, write_hog
from wkhost.bench.load import Load, Pace, Tally
from wkhost.bench.peers import logged_in
from wkhost.bench.plugins import MODERATION
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Report, look_around
from wkhost.bench.samples import percentiles, ratio
from wkhost.bench.send import DRAIN_S, PAYLOAD
from wkhost.bench.server import Server, own_server, temporary_folder
from wkhost.bench.usage import cpu_s, rss_bytes
from wkhost.errors import ReasonCode
from wkhost.link import contract as c
from wkhost.link.client_sync import connect_operator
from wkhost.types import ChannelType

AIM_WITH_CGROUP = 1.2
AIM_WITHOUT = 1.5
_ASIDE_EVERY_S = 0.05
_TIMEOUT_S = 30.0
_MIB = 1024 * 1024
_SUCCESS = str(int(ReasonCode.SUCCESS))

Answer = TypeVar("Answer")


class HogsOptions(msgspec.Struct, frozen=True):
    """`pairs` windows with and as many without, `window_s` each, for each kind and hook."""

    rate: float = 1000.0
    pairs: int = 10
    window_s: float = 2.0
    warmup_s: float = 1.0
    connections: int = 40
    kinds: tuple[str, ...] = tuple(KINDS)
    hooks: tuple[str, ...] = ("persist_after",)


class HogResult(msgspec.Struct, frozen=True):
    """One kind of hog, called by one hook. Latencies in ms: SENDACKs through the good plugin."""

    kind: str
    hook: str
    ok: bool
    """Nothing was refused, lost, repeated or disordered."""
    p99_ratio: float
    """Median over the pairs, with the hog to without."""
    p50_ratio: float
    p99_with: float
    p99_without: float
    p99_ratios: list[float]
    sent: int
    refused: int
    violations: dict[str, int]
    server_cores_with: float
    """CPU of the server's own process, in cores."""
    server_cores_without: float
    server_rss_mib: float
    """Of the server's own process: the largest at the end of a window with the hog."""
    server_growth_mib: float
    hog_state: str
    """What became of the hog in its last window."""


def measure_hogs(options: HogsOptions, tell: Tell) -> Report:
    """Measure each kind of hog by each hook. Raises BenchError."""
    if options.connections < 2 or options.connections % 2:
        raise BenchError(f"--connections: expected an even number, got {options.connections}")
    cases = [(kind, hook) for kind in options.kinds for hook in options.hooks]
    steps = Steps(len(cases) * options.pairs, tell)
    with temporary_folder() as folder:
        around = look_around(folder)
        results = []
        for kind, hook in cases:
            results.append(_measure(options, kind, hook, folder / f"{kind}-{hook}", steps))
        return around.report("hogs", options, results)


class _Window(msgspec.Struct, frozen=True):
    p50: float
    p99: float
    rss: int
    cores: float


def _measure(options: HogsOptions, kind: str, hook: str, folder: Path, steps: Steps) -> HogResult:
    hog = write_hog(folder, kind, hook)
    total = Tally()
    windows: dict[bool, list[_Window]] = {True: [], False: []}
    with ExitStack() as stack:
        server = stack.enter_context(own_server(folder / "s", [MODERATION]))
        operator = _Operator(server)
        operator.install(hog)
        stack.enter_context(_asides(server))
        load = stack.enter_context(_load(options, server))
        state = ""
        for number in range(options.pairs):
            steps.begin(f"{kind} hog on {hook}, pair {number + 1} of {options.pairs}")
            for busy in (number % 2 == 0, number % 2 == 1):
                if busy:
                    operator.enable(hog)
                else:
                    operator.act("disable")
                windows[busy].append(_window(options, load, server, total))
                state = operator.state() if busy else state
            steps.end()
    return _result(kind, hook, windows, total, state)


def _window(options: HogsOptions, load: Load, server: Server, total: Tally) -> _Window:
    load.tally = tally = Tally()
    used: list[float] = []
    load.run(
        warmup_s=options.warmup_s,
        duration_s=options.window_s,
        drain_s=DRAIN_S,
        measure=lambda: used.append(cpu_s(server.pid)),
        tell=lambda share: None,
    )
    total.sent += tally.sent
    total.reasons.update(tally.reasons)
    for name in msgspec.structs.fields(tally.violations):
        before = getattr(total.violations, name.name)
        setattr(total.violations, name.name, before + getattr(tally.violations, name.name))
    found = percentiles(tally.ack_s)
    cores = ratio(used[1] - used[0], tally.seconds, 3)
    return _Window(found.p50, found.p99, rss_bytes(server.pid), cores)


def _result(
    kind: str, hook: str, windows: dict[bool, list[_Window]], total: Tally, state: str
) -> HogResult:
    pairs = list(zip(windows[True], windows[False], strict=True))
    ratios = [ratio(busy.p99, quiet.p99) for busy, quiet in pairs]
    refused = sum(n for code, n in total.reasons.items() if str(code) != _SUCCESS)
    violations = total.violations.found()
    return HogResult(
        kind=kind,
        hook=hook,
        ok=not refused and not violations,
        p99_ratio=round(median(ratios), 2),
        p50_ratio=round(median(ratio(busy.p50, quiet.p50) for busy, quiet in pairs), 2),
        p99_with=median(busy.p99 for busy, _ in pairs),
        p99_without=median(quiet.p99 for _, quiet in pairs),
        p99_ratios=ratios,
        sent=total.sent,
        refused=refused,
        violations=violations,
        server_cores_with=round(median(busy.cores for busy, _ in pairs), 3),
        server_cores_without=round(median(quiet.cores for _, quiet in pairs), 3),
        server_rss_mib=round(max(busy.rss for busy, _ in pairs) / _MIB, 1),
        server_growth_mib=round((pairs[-1][0].rss - pairs[0][0].rss) / _MIB, 1),
        hog_state=state,
    )


@contextmanager
def _load(options: HogsOptions, server: Server) -> Iterator[Load]:
    run = token_hex(4)
    uids = [f"bench-{run}-{n}" for n in range(options.connections)]
    with logged_in(uids, server.tcp, lambda share: None) as peers:
        for peer in peers:
            peer.sends_to(uids[peer.index ^ 1], ChannelType.PERSON, receivers=1)
        load = Load(peers, PAYLOAD, Pace(rate=options.rate))
        try:
            yield load
        finally:
            load.close()


@contextmanager
def _asides(server: Server) -> Iterator[None]:
    """Post to the hog's own channel, whose other member is offline, from a thread of its own."""
    over = threading.Event()
    body = {"channel_id": CHANNEL, "channel_type": int(ChannelType.GROUP)}
    with httpx.Client(base_url=server.http_url, timeout=_TIMEOUT_S, trust_env=False) as http:
        answer = http.post("/channel", json={**body, "subscribers": ["aside", "offline"]})
        if answer.status_code != httpx.codes.OK:
            raise BenchError(f"POST /channel answered {answer.status_code}: {answer.text[:200]}")
        text = base64.b64encode(PAYLOAD).decode()

        def post() -> None:
            while not over.wait(_ASIDE_EVERY_S):
                http.post("/message/send", json={**body, "from_uid": "aside", "payload": text})

        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class _Operator:
    """Enables and disables the hog of a running server."""

    def __init__(self, server: Server) -> None:
        if server.data_dir is None:
            raise BenchError("the server's link is not known")
        self._data_dir = server.data_dir

    def install(self, folder: Path) -> None:
        proposal = self._ask(c.InspectPlugin(os.fspath(folder)), c.PluginProposal)
        request = c.InstallPlugin(os.fspath(folder), enable=False, digest=proposal.digest)
        self._ask(request, c.PluginStatus)

    def enable(self, folder: Path) -> None:
        """Start it; one that is refused over what it left behind begins anew."""
        try:
            self.act("enable")
        except BenchError:
            self.act("uninstall")
            self.install(folder)
            self.act("enable")

    def act(self, action: str) -> None:
        self._ask(c.PluginAction(NO, action), c.PluginStatus)

    def state(self) -> str:
        status = self._ask(c.GetPlugin(NO), c.PluginStatus)
        return f"{status.state}, {status.restarts} restarts {status.detail}".rstrip()

    def _ask(self, request: c.Request, answer: type[Answer]) -> Answer:
        with connect_operator(self._data_dir, timeout_s=_TIMEOUT_S) as link:
            found = link.ask(request)
        if isinstance(found, answer):
            return found
        raise BenchError(found.text if isinstance(found, c.Error) else f"unexpected: {found}")
