"""`bench fanout`: one group whose members are all online."""

from __future__ import annotations

from contextlib import ExitStack
from secrets import token_hex

import httpx
import msgspec

from wkhost.bench.errors import BenchError
from wkhost.bench.load import Load, Pace
from wkhost.bench.meter import CpuPerUnit, Meter
from wkhost.bench.peers import logged_in
from wkhost.bench.progress import Steps, Tell
from wkhost.bench.report import Outcome, Report, look_around, outcome_of
from wkhost.bench.samples import Percentiles, percentiles, ratio
from wkhost.bench.send import DRAIN_S, PAYLOAD
from wkhost.bench.server import Server, own_server, temporary_folder
from wkhost.types import ChannelType

_API_TIMEOUT_S = 30.0


class FanoutOptions(msgspec.Struct, frozen=True):
    """`rate` messages a second in all, from `senders` of the `members` in turn."""

    members: int = 500
    senders: int = 5
    rate: float = 20.0
    duration_s: float = 6.0
    warmup_s: float = 1.0


class FanoutResult(msgspec.Struct, frozen=True):
    """Each message goes to every member but its sender, and each RECV gets its RECVACK."""

    ok: bool
    seconds: float
    sends_per_s: float
    deliveries_per_s: float
    sendack_ms: Percentiles
    delivery_ms: Percentiles
    cpu_us_per_delivery: CpuPerUnit
    outcome: Outcome


def measure_fanout(options: FanoutOptions, tell: Tell, server: Server | None = None) -> Report:
    """Measure on a server of our own, or on the running `server`. Raises BenchError."""
    if not 1 <= options.senders <= options.members or options.members < 2:
        raise BenchError("--senders: expected 1 to the number of members, which is at least 2")
    steps = Steps(3, tell)
    with temporary_folder() as folder, ExitStack() as stack:
        around = look_around(folder)
        steps.begin("starting a server")
        if server is None:
            server = stack.enter_context(own_server(folder / "server"))
        steps.end()
        run = token_hex(4)
        group = f"bench-{run}"
        uids = [f"{group}-{n}" for n in range(options.members)]
        steps.begin(f"{options.members} members log in")
        _make_group(server.http_url, group, uids)
        peers = stack.enter_context(logged_in(uids, server.tcp, steps.at))
        steps.end()
        for peer in peers[: options.senders]:
            peer.sends_to(group, ChannelType.GROUP, receivers=options.members - 1)
        load = Load(peers, PAYLOAD, Pace(rate=options.rate))
        stack.callback(load.close)
        meter = Meter(server)
        steps.begin("sending")
        load.run(
            warmup_s=options.warmup_s,
            duration_s=options.duration_s,
            drain_s=DRAIN_S,
            measure=meter,
            tell=steps.at,
        )
        steps.end()
        return around.report("fanout", options, [_result(load, meter)])


def _result(load: Load, meter: Meter) -> FanoutResult:
    tally = load.tally
    outcome = outcome_of(tally)
    return FanoutResult(
        ok=outcome.ok,
        seconds=round(tally.seconds, 3),
        sends_per_s=ratio(tally.acked, tally.seconds, 1),
        deliveries_per_s=ratio(tally.delivered, tally.seconds, 1),
        sendack_ms=percentiles(tally.ack_s),
        delivery_ms=percentiles(tally.delivery_s),
        cpu_us_per_delivery=meter.cpu_per(tally.delivered),
        outcome=outcome,
    )


def _make_group(url: str, group: str, uids: list[str]) -> None:
    if not url:
        raise BenchError("--http: expected the server's business API, to make the group by")
    body = {"channel_id": group, "channel_type": int(ChannelType.GROUP), "subscribers": uids}
    try:
        answer = httpx.post(f"{url}/channel", json=body, timeout=_API_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise BenchError(f"POST {url}/channel: {error or type(error).__name__}") from error
    if answer.status_code != httpx.codes.OK:
        raise BenchError(f"POST {url}/channel answered {answer.status_code}: {answer.text[:200]}")
