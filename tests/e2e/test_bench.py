"""The measurements, as short as they go: what they count must add up; how fast is not asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import trio

from tests.kit.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e


@pytest.fixture
def temp() -> Iterator[Path]:
    """A folder with a short name: the path of a server's socket may have 107 bytes."""
    with TemporaryDirectory(prefix="wkb-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def wkhost(*arguments: str, temp: Path) -> subprocess.CompletedProcess[str]:
    """Run a command whose temporary files go below `temp`."""
    return subprocess.run(
        [sys.executable, "-m", "wkhost", *arguments],
        cwd=temp,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TMPDIR": str(temp)},
    )


def bench(*arguments: str, temp: Path) -> dict[str, Any]:
    """Run `wkhost bench ... --json`; check what all reports share and return the report."""
    done = wkhost("bench", *arguments, "--json", temp=temp)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    report: dict[str, Any] = json.loads(lines[0])
    assert report["command"] == arguments[0]
    assert report["ok"] is True
    assert report["wkhost"]["version"]
    machine = report["machine"]
    assert machine["cores"] == os.cpu_count()
    assert machine["cpu"]
    assert machine["kernel"] == os.uname().release
    assert len(machine["load_average"]) == 3
    assert list(temp.glob("wkhost-*bench*")) == []
    assert not [each for each in psutil.process_iter() if _started_in(each, temp)]
    return report


def _started_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(str(folder) in word for word in process.cmdline())
    except psutil.Error:
        return False


def check_outcome(outcome: dict[str, Any]) -> None:
    assert outcome["violations"] == {}
    assert set(outcome["reasons"]) == {"1"}
    assert outcome["reasons"]["1"] >= outcome["acked"] > 0


def check_latency(found: dict[str, Any]) -> None:
    assert 0 < found["p50"] <= found["p90"] <= found["p99"] <= found["max"]


def test_send_compares_numbers_of_plugins(temp: Path) -> None:
    report = bench(
        *("send", "--connections", "4", "--window", "2", "--plugins", "0,2"),
        *("--duration", "0.5", "--warmup", "0.1", "--rounds", "2"),
        temp=temp,
    )
    bare, two = report["results"]
    assert bare["plugins"] == []
    assert two["plugins"] == ["moderation", "empty1"]
    for result in (bare, two):
        check_outcome(result["outcome"])
        check_latency(result["sendack_ms"])
        check_latency(result["delivery_ms"])
        outcome = result["outcome"]
        # All that was sent inside the windows came to its end, drain included.
        assert result["sendack_ms"]["count"] == result["delivery_ms"]["count"] == outcome["sent"]
        assert result["sends_per_s"] == pytest.approx(
            outcome["acked"] / result["seconds"], rel=0.01
        )
        assert result["mean_batch"]["commit"] >= 1
        cpu = result["cpu_us_per_send"]
        parts = cpu["server"] + cpu["others"] + sum(cpu["plugins"].values())
        assert cpu["total"] == pytest.approx(parts, abs=0.1)
    assert bare["cpu_us_added"] is None
    assert set(two["cpu_us_per_send"]["plugins"]) == {"moderation", "empty1"}
    assert all(size >= 1 for size in two["mean_batch"]["plugins"].values())


def test_send_keeps_an_open_loop_at_its_rate(temp: Path) -> None:
    report = bench(
        *("send", "--connections", "4", "--rate", "100", "--plugins", "0"),
        *("--duration", "0.5", "--warmup", "0.1", "--rounds", "1"),
        temp=temp,
    )
    (result,) = report["results"]
    check_outcome(result["outcome"])
    due = result["outcome"]["sent"] + result["outcome"]["due_but_unsent"]
    assert due == pytest.approx(50, abs=2)


def test_fanout_reaches_every_member_but_the_sender(temp: Path) -> None:
    report = bench(
        *("fanout", "--members", "5", "--senders", "2", "--rate", "40"),
        *("--duration", "0.5", "--warmup", "0.1"),
        temp=temp,
    )
    (result,) = report["results"]
    check_outcome(result["outcome"])
    check_latency(result["delivery_ms"])
    assert result["delivery_ms"]["count"] == 4 * result["outcome"]["sent"]


def test_hooks_puts_the_stream_beside_unary_calls(temp: Path) -> None:
    report = bench("hooks", "--inflight", "1,16", "--duration", "0.3", "--warmup", "0.1", temp=temp)
    one, many = report["results"]
    assert (one["inflight"], many["inflight"]) == (1, 16)
    for result in (one, many):
        for way in ("stream", "unary"):
            figures = result[way]
            check_latency(figures["call_ms"])
            assert figures["calls"] == figures["call_ms"]["count"] > 0
    assert one["stream"]["mean_batch"] == 1
    assert 1 <= many["stream"]["mean_batch"] <= 16


def test_idle_looks_at_each_transport(temp: Path) -> None:
    report = bench("idle", "--connections", "20", "--hold", "0.1", temp=temp)
    assert [each["transport"] for each in report["results"]] == ["tcp", "ws", "wss"]
    for each in report["results"]:
        assert each["answering"] == each["connections"] == 20
        assert each["pss_mib_after"] > 0


async def test_a_running_server_is_measured_and_left_running(temp: Path) -> None:
    arguments = ("send", "--connections", "2", "--duration", "0.3", "--warmup", "0", "--json")
    async with running_server(temp / "server") as server:
        by_target = await trio.to_thread.run_sync(
            lambda: server.cli("bench", *arguments, *_target_of(server))
        )
        (result,) = json.loads(by_target.stdout)["results"]
        check_outcome(result["outcome"])
        # Its link was not named, so nothing is known of its batches.
        assert result["mean_batch"]["commit"] is None
        # Ports that were chosen at the start cannot be read from the configuration.
        by_config = await trio.to_thread.run_sync(
            lambda: wkhost("--config", str(server.config), "bench", *arguments, temp=temp)
        )
        assert by_config.returncode == 1
        assert by_config.stderr.count("\n") == 1
        assert "--target" in by_config.stderr
        assert server.process is not None
        assert server.process.poll() is None


def _target_of(server: ServerProcess) -> tuple[str, ...]:
    host, port = server.address("tcp")
    return ("--target", f"tcp://{host}:{port}", "--http", server.api, "--pid", str(server.pid))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("send", "--connections", "3"), "--connections"),
        (("fanout", "--members", "3", "--senders", "4"), "--senders"),
        (("idle", "--transports", "udp"), "--transports"),
        (("send", "--target", "tcp://127.0.0.1:1", "--pid", "1"), "127.0.0.1:1"),
    ],
)
def test_a_wrong_wish_is_answered_by_one_sentence(
    arguments: tuple[str, ...], named: str, temp: Path
) -> None:
    done = wkhost("bench", *arguments, temp=temp)
    assert done.returncode == 1
    assert done.stderr.startswith("wkhost: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert list(temp.iterdir()) == []
