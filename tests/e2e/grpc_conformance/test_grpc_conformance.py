"""Real gRPC clients against the host's wire: every case with every client."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.grpc_conformance.grpc_echo_service import Service, serving
from tests.kit.missing import unavailable
from tests.kit.node_js import NODE, packages, tool_cache
from wkhost.plugin_host.grpc import StatusCode

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
CASES = (
    "unary",
    "bidi_ping_pong",
    "large_message",
    "deadline_exceeded",
    "client_cancels",
    "error_status",
    "unknown_method",
    "metadata",
    "concurrent_64",
    "half_close",
    "stalled_reader",
    "oversize_message",
    "gzip_refused",
    "keepalive",
)
CLIENTS = ("grpcio-sync", "grpcio-aio", "node", "go")
SLOW = {("go", "keepalive")}  # 11 s: the shortest interval of the Go client is 10 s


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    # pytest's own folders may be longer than a socket path can be.
    with tempfile.TemporaryDirectory(prefix="wk") as folder:
        yield Path(folder) / "s"


@pytest.fixture(scope="module")
def service(socket_path: Path) -> Iterator[Service]:
    with serving(socket_path) as found:
        yield found


def node_command() -> list[str]:
    modules = packages(HERE / "node")
    return ["env", f"CONFORMANCE_MODULES={modules}", NODE, str(HERE / "node" / "client.js")]


def go_command() -> list[str]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not on PATH: the wire was NOT tested with the Go client")
    binary = tool_cache("grpc-conformance") / "go-client"
    done = subprocess.run(
        [go, "build", "-mod=readonly", "-o", str(binary), "."],
        cwd=HERE / "go",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        unavailable(f"go build failed: {done.stderr[-2000:]}")
    return [str(binary)]


@cache
def client_command(client: str) -> list[str]:
    if client == "node":
        return node_command()
    if client == "go":
        return go_command()
    return [sys.executable, str(HERE / f"grpc_client_{client.removeprefix('grpcio-')}.py")]


@cache
def results(client: str, socket_path: Path) -> dict[str, dict[str, object]]:
    """Runs all cases of a client in one process; each case has a connection of its own."""
    names = [name for name in CASES if (client, name) not in SLOW]
    done = subprocess.run(
        [*client_command(client), str(socket_path), *names],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == set(names), done.stderr
    return found


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", CASES)
def test_client_sees_what_grpc_promises(
    case: str, client: str, service: Service, socket_path: Path
) -> None:
    if (client, case) in SLOW:
        pytest.skip("run by test_go_keepalive_is_answered")
    result = results(client, socket_path)[case]
    assert result["ok"], result["detail"]


@pytest.mark.slow
def test_go_keepalive_is_answered(service: Service, socket_path: Path) -> None:
    command = [*client_command("go"), str(socket_path), "keepalive"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["ok"], done.stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_killed_client_closes_its_calls_at_once(client: str) -> None:
    command = client_command(client)
    with tempfile.TemporaryDirectory(prefix="wk") as folder, serving(Path(folder) / "s") as service:
        process = subprocess.Popen(
            [*command, f"{folder}/s", "hold"], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            process.send_signal(signal.SIGKILL)
        end = time.monotonic() + 5
        while not service.closed and time.monotonic() < end:
            time.sleep(0.001)
        (error,) = service.closed
    assert error is not None
    assert error.code is StatusCode.UNAVAILABLE


def test_no_client_was_taken_for_an_attacker(service: Service, socket_path: Path) -> None:
    results("grpcio-aio", socket_path)
    assert service.errors == []
