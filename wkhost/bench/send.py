"""`bench send`: durable sends in person chats, with more and fewer plugins on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import msgspec

from wkhost.bench.errors import BenchError
from wkhost.bench.load import Load, Pace
from wkhost.bench.meter import BatchCounts, Batches, CpuPerUnit, Meter
from wkhost.bench.peers import logged_in
from wkhost.bench.plugins import in_chain_order, plugin_sources
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Outcome, Report, look_around, outcome_of
from wkhost.bench.samples import Percentiles, percentiles, ratio
from wkhost.bench.server import Server, own_server, temporary_folder
from wkhost.types import ChannelType

DRAIN_S = 10.0
TEXT = b"See you at the station at half past seven, I will bring the tickets and something to eat."
PAYLOAD = b'{"type":1,"content":"' + TEXT + b'"}'


class SendOptions(msgspec.Struct, frozen=True):
    """`connections` users in pairs, each sends to the other. `rate` 0: a closed loop.

    `duration_s` is measured for each number of plugins, in `rounds` windows that take turns, so
    that what else happens on the machine hits all alike.
    """

    connections: int = 100
    window: int = 1
    rate: float = 0.0
    plugins: tuple[int, ...] = (0, 1, 3)
    duration_s: float = 6.0
    warmup_s: float = 1.0
    rounds: int = 3


class SendResult(msgspec.Struct, frozen=True):
    """One number of plugins. A send is counted when its SENDACK came inside a window."""

    plugins: list[str]
    ok: bool
    seconds: float
    sends_per_s: float
    sendack_ms: Percentiles
    delivery_ms: Percentiles
    cpu_us_per_send: CpuPerUnit
    cpu_us_added: float | None
    """Total over that of the first result; None for the first."""
    mean_batch: Batches
    outcome: Outcome


class _Lane:
    """One server with its load."""

    def __init__(self, server: Server, plugins: list[str], load: Load) -> None:
        self.plugins = plugins
        self.load = load
        self.meter = Meter(server)
        self.batches = BatchCounts(server)

    def result(self, first: _Lane) -> SendResult:
        tally = self.load.tally
        outcome = outcome_of(tally)
        cpu = self.meter.cpu_per(tally.acked)
        added = None
        if self is not first:
            added = round(cpu.total - first.meter.cpu_per(first.load.tally.acked).total, 2)
        return SendResult(
            plugins=self.plugins,
            ok=outcome.ok,
            seconds=round(tally.seconds, 3),
            sends_per_s=ratio(tally.acked, tally.seconds, 1),
            sendack_ms=percentiles(tally.ack_s),
            delivery_ms=percentiles(tally.delivery_s),
            cpu_us_per_send=cpu,
            cpu_us_added=added,
            mean_batch=self.batches.means(),
            outcome=outcome,
        )


def measure_send(options: SendOptions, tell: Tell, server: Server | None = None) -> Report:
    """Measure on servers of our own, or on the running `server` as it is. Raises BenchError."""
    if options.connections < 2 or options.connections % 2:
        raise BenchError(f"--connections: expected an even number, got {options.connections}")
    counts = options.plugins if server is None else (0,)
    steps = Steps(len(counts) * (1 + options.rounds), tell)
    with temporary_folder() as folder, ExitStack() as stack:
        around = look_around(folder)
        lanes = []
        for count in counts:
            steps.begin(f"starting a server with {count} plugins" if server is None else "login")
            lanes.append(
                stack.enter_context(_lane(options, folder / f"with-{count}", count, server, steps))
            )
            steps.end()
        for number in range(options.rounds):
            for lane in lanes:
                steps.begin(f"round {number + 1}, {_named(lane.plugins)}")
                lane.load.run(
                    warmup_s=options.warmup_s,
                    duration_s=options.duration_s / options.rounds,
                    drain_s=DRAIN_S,
                    measure=lane.meter,
                    tell=steps.at,
                )
                steps.end()
        return around.report("send", options, [lane.result(lanes[0]) for lane in lanes])


@contextmanager
def _lane(
    options: SendOptions, folder: Path, count: int, running: Server | None, steps: Steps
) -> Iterator[_Lane]:
    with ExitStack() as stack:
        server = running
        if server is None:
            sources = plugin_sources(folder / "sources", count)
            server = stack.enter_context(own_server(folder, sources))
        run = token_hex(4)
        uids = [f"bench-{run}-{n}" for n in range(options.connections)]
        peers = stack.enter_context(logged_in(uids, server.tcp, steps.at))
        for peer in peers:
            peer.sends_to(uids[peer.index ^ 1], ChannelType.PERSON, receivers=1)
        load = Load(peers, PAYLOAD, Pace(options.window, options.rate))
        stack.callback(load.close)
        yield _Lane(server, in_chain_order(server.plugin_pids()), load)


def _named(plugins: list[str]) -> str:
    return ", ".join(plugins) or "no plugin"
