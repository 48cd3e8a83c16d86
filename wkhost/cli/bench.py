"""`wkhost bench ...`: measurements, as a table or as one JSON object."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wkhost import log
from wkhost.bench.errors import BenchError
from wkhost.bench.fanout import FanoutOptions, measure_fanout
from wkhost.bench.faults.measure import NAMES, measure_faults
from wkhost.bench.faults.trial import FaultOptions
from wkhost.bench.hogs.kinds import HOOKS, KINDS
from wkhost.bench.hogs.measure import HogsOptions, measure_hogs
from wkhost.bench.hooks import HooksOptions, measure_hooks
from wkhost.bench.idle import IdleOptions, measure_idle
from wkhost.bench.progress import Tell
from wkhost.bench.report import Report
from wkhost.bench.send import SendOptions, measure_send
from wkhost.bench.server import Server, configured_server, running_server
from wkhost.cli import bench_views
from wkhost.cli.session import Session, json_option, pass_session

F = TypeVar("F", bound=Callable[..., Any])
_SECONDS = click.FloatRange(0.05, 3600)


class Numbers(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of different numbers."""

    name = "n,n,..."

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and self._least <= int(part) <= self._most for part in parts):
            self.fail(f"expected numbers from {self._least} to {self._most}, got {value!r}")
        return tuple(dict.fromkeys(map(int, parts)))


@click.group()
def bench() -> None:
    """Measure sends, fan-out, hook calls and idle connections.

    Each starts a server of its own on free ports with its data in a temporary folder, unless
    `wkhost --config FILE bench ...` or --target names one that runs. Exit code 1: something was
    lost, repeated, disordered or refused.
    """


def target_options(command: F) -> F:
    """Add the options that name a running server."""
    for option in (
        click.option("--pid", type=click.IntRange(1), help="The target's process, for its CPU."),
        click.option("--http", metavar="URL", default="", help="The target's business API."),
        click.option("--target", metavar="TCP://HOST:PORT", help="A running server."),
    ):
        command = option(command)
    return command


@bench.command()
@click.option("--connections", default=100, type=click.IntRange(2), help="Users, in pairs.")
@click.option("--window", default=1, type=click.IntRange(1, 256), help="In flight per user.")
@click.option(
    "--rate", default=0.0, type=click.FloatRange(0), help="Sends a second in all: an open loop."
)
@click.option(
    "--plugins",
    default=(0, 1, 3),
    type=Numbers(0, 20),
    help="Numbers of plugins to compare; the first is moderation, the others do nothing.",
)
@click.option("--duration", default=6.0, type=_SECONDS, help="Seconds, for each number of plugins.")
@click.option("--warmup", default=1.0, type=click.FloatRange(0, 600), help="Seconds before each.")
@click.option("--rounds", default=3, type=click.IntRange(1, 100), help="Turns of each.")
@target_options
@json_option
@pass_session
def send(
    session: Session,
    connections: int,
    window: int,
    rate: float,
    plugins: tuple[int, ...],
    duration: float,
    warmup: float,
    rounds: int,
    target: str | None,
    http: str,
    pid: int | None,
    as_json: bool,
) -> int:
    """Durable sends in person chats: rate, latency, CPU, with and without plugins.

    A running server is measured with the plugins that it has.
    """
    options = SendOptions(connections, window, rate, plugins, duration, warmup, rounds)
    server = _named_server(session, target, http, pid)
    with _measuring(session) as tell:
        report = measure_send(options, tell, server)
    return _show(session, report, as_json)


@bench.command()
@click.option("--members", default=500, type=click.IntRange(2), help="All of them are online.")
@click.option("--senders", default=5, type=click.IntRange(1), help="Members that send, in turn.")
@click.option(
    "--rate", default=20.0, type=click.FloatRange(0.1), help="Messages a second to the group."
)
@click.option("--duration", default=6.0, type=_SECONDS, help="Seconds.")
@click.option("--warmup", default=1.0, type=click.FloatRange(0, 600), help="Seconds before it.")
@target_options
@json_option
@pass_session
def fanout(
    session: Session,
    members: int,
    senders: int,
    rate: float,
    duration: float,
    warmup: float,
    target: str | None,
    http: str,
    pid: int | None,
    as_json: bool,
) -> int:
    """One group with everyone online: deliveries, their latency and CPU."""
    options = FanoutOptions(members, senders, rate, duration, warmup)
    server = _named_server(session, target, http, pid)
    with _measuring(session) as tell:
        report = measure_fanout(options, tell, server)
    return _show(session, report, as_json)


@bench.command()
@click.option(
    "--inflight", default=(1, 64, 1000), type=Numbers(1, 4000), help="Calls at the same time."
)
@click.option("--duration", default=3.0, type=_SECONDS, help="Seconds, for each and each way.")
@click.option("--warmup", default=0.5, type=click.FloatRange(0, 600), help="Seconds before each.")
@json_option
@pass_session
def hooks(
    session: Session,
    inflight: tuple[int, ...],
    duration: float,
    warmup: float,
    as_json: bool,
) -> int:
    """Hook calls through one Python plugin: the batched stream against unary gRPC.

    No server takes part: the plugin host runs in this process and a plugin in its own.
    """
    with _measuring(session) as tell:
        report = measure_hooks(HooksOptions(inflight, duration, warmup), tell)
    return _show(session, report, as_json)


@bench.command()
@click.option("--connections", default=2000, type=click.IntRange(1), help="Of each transport.")
@click.option("--transports", default="tcp,ws,wss", metavar="A,B", help="Of tcp, ws and wss.")
@click.option("--hold", default=3.0, type=_SECONDS, help="Seconds of silence.")
@target_options
@json_option
@pass_session
def idle(
    session: Session,
    connections: int,
    transports: str,
    hold: float,
    target: str | None,
    http: str,
    pid: int | None,
    as_json: bool,
) -> int:
    """Memory of connections that are logged in and silent."""
    names = tuple(dict.fromkeys(name.strip() for name in transports.split(",")))
    options = IdleOptions(connections, names, hold)
    server = _named_server(session, target, http, pid)
    with _measuring(session) as tell:
        report = measure_idle(options, tell, server)
    return _show(session, report, as_json)


@bench.command()
@click.option("--only", "only", multiple=True, type=click.Choice(NAMES), help="Just this fault.")
@click.option("--rate", default=200.0, type=click.FloatRange(10, 2000), help="Messages a second.")
@click.option("--repeats", default=5, type=click.IntRange(1, 100), help="Times of each fault.")
@click.option(
    "--rest", default=10.5, type=click.FloatRange(0.1, 600), help="Seconds before each time."
)
@click.option("--hang", default=4.0, type=click.FloatRange(0.5, 60), help="Seconds of a SIGSTOP.")
@json_option
@pass_session
def faults(
    session: Session,
    only: tuple[str, ...],
    rate: float,
    repeats: int,
    rest: float,
    hang: float,
    as_json: bool,
) -> int:
    """Kill, hang, crash, replace and impersonate a moderation plugin; kill the server.

    Every message carries a word that the plugin masks or refuses, so each tells whether it was
    moderated; at the end all chats are read back. docs/faults.md explains each row.
    """
    options = FaultOptions(rate, repeats, rest, hang, only)
    with _measuring(session) as tell:
        report = measure_faults(options, tell)
    return _show(session, report, as_json)


@bench.command()
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Just these.")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    default=("persist_after",),
    type=click.Choice(HOOKS),
    help="By which hook the hog is called; `send` is that of a channel of its own.",
)
@click.option("--rate", default=1000.0, type=click.FloatRange(10, 20000), help="Messages a second.")
@click.option("--pairs", default=10, type=click.IntRange(1, 100), help="Windows with and without.")
@click.option("--window", default=2.0, type=_SECONDS, help="Seconds of each window.")
@json_option
@pass_session
def hogs(
    session: Session,
    kinds: tuple[str, ...],
    hooks: tuple[str, ...],
    rate: float,
    pairs: int,
    window: float,
    as_json: bool,
) -> int:
    """A plugin that takes all it can get, beside a good one: what the good one's users notice."""
    options = HogsOptions(
        rate=rate, pairs=pairs, window_s=window, kinds=kinds or tuple(KINDS), hooks=hooks
    )
    with _measuring(session) as tell:
        report = measure_hogs(options, tell)
    return _show(session, report, as_json)


def _named_server(
    session: Session, target: str | None, http: str, pid: int | None
) -> Server | None:
    """Return the running server that the person named, None where there is none."""
    if target is None:
        if http or pid:
            raise click.UsageError("--http and --pid go with --target")
        return configured_server(session.settings()) if session.names_server else None
    if pid is None:
        raise click.UsageError("--target: expected --pid too, the server's process")
    return running_server(target, http, pid)


@contextmanager
def _measuring(session: Session) -> Iterator[Tell]:
    """Show the progress on stderr, and clean up on SIGTERM as on Ctrl-C."""
    log.configure(logging.WARNING)
    before = signal.signal(signal.SIGTERM, _interrupt)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with Progress(
            *columns, console=session.err, transient=True, disable=not session.err.is_terminal
        ) as progress:
            task = progress.add_task("", total=1.0)

            def tell(share: float, text: str) -> None:
                progress.update(task, completed=share, description=text)

            yield tell
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(session: Session, report: Report, as_json: bool) -> int:
    """Print the report; return the exit code."""
    if as_json:
        session.json(report)
    else:
        bench_views.show(session, report)
    if not report.ok:
        raise BenchError("the measurement found what must not be: see `ok` in its results")
    return 0
