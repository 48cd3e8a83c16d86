"""The server under measurement: one of our own on free ports, or one that runs already."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from wkhost.bench.errors import BenchError
from wkhost.bench.usage import ProcessTree
from wkhost.config import Settings
from wkhost.config.values import Address, parse_address
from wkhost.link.client_sync import connect_operator
from wkhost.link.contract import GetStatistics, InstallPlugin, ListPlugins, PluginList, Statistics
from wkhost.link.runtime import find_link_socket, no_server
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.package import builtin_folder

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_LOG_LINES = 3


class Server(msgspec.Struct, frozen=True):
    """A running server. Addresses are (host, port); `data_dir` None: its link is not known."""

    pid: int
    tcp: tuple[str, int]
    ws: tuple[str, int] | None = None
    wss: tuple[str, int] | None = None
    http_url: str = ""
    data_dir: Path | None = None

    def tree(self) -> ProcessTree:
        """Return its processes of this moment."""
        return ProcessTree(self.pid)

    def plugin_pids(self) -> dict[str, int]:
        """Return the running plugins by number; empty when the link is not known."""
        # Statistics without plugins: the server runs with plugin.on false.
        if self.data_dir is None or "plugins" not in self.statistics():
            return {}
        with connect_operator(self.data_dir) as link:
            answer = link.ask(ListPlugins())
        if not isinstance(answer, PluginList):
            raise BenchError(f"the server does not list its plugins: {answer}")
        return {plugin.no: plugin.pid for plugin in answer.plugins if plugin.pid}

    def statistics(self) -> dict[str, Any]:
        """Return the counters of every part; empty when the link is not known."""
        if self.data_dir is None:
            return {}
        with connect_operator(self.data_dir) as link:
            answer = link.ask(GetStatistics())
        if not isinstance(answer, Statistics):
            raise BenchError(f"the server does not tell its statistics: {answer}")
        return answer.parts


def running_server(target: str, http_url: str, pid: int) -> Server:
    """Return the server at `target` (tcp://host:port). Raises BenchError."""
    try:
        address = parse_address(target, "tcp")
    except ValueError:
        raise BenchError(f"--target: expected tcp://host:port, got {target!r}") from None
    return Server(pid=pid, tcp=_reachable("--target", address), http_url=http_url.rstrip("/"))


def configured_server(settings: Settings) -> Server:
    """Return the server that runs with these settings. Raises BenchError, NoServerError."""
    wss = settings.wss_addr if settings.wss_config.cert_file is not None else None
    http = _reachable("httpAddr", settings.http_addr)
    return Server(
        pid=_pid_behind(settings.data_path),
        tcp=_reachable("addr", settings.addr),
        ws=_reachable("wsAddr", settings.ws_addr),
        wss=None if wss is None else _reachable("wssAddr", wss),
        http_url=f"http://{Address('', *http)}",
        data_dir=settings.data_path,
    )


def _reachable(key: str, address: Address) -> tuple[str, int]:
    if not address.port:
        raise BenchError(f"{key}: port 0 is chosen at each start; name the server by --target")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return host, address.port


def _pid_behind(data_dir: Path) -> int:
    """Return the process that listens on the link of a data directory. Raises NoServerError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(os.fspath(find_link_socket(data_dir)))
        except (FileNotFoundError, ConnectionRefusedError):
            raise no_server(data_dir) from None
        cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", cred)[0]
    return pid


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder for everything that a measurement writes; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="wkhost-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class OwnServer:
    """A server of our own with exactly these plugins, in the folder `root`.

    It may be started again after its end: data and plugins stay.
    """

    def __init__(
        self, root: Path, plugins: Sequence[str] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self.root_dir = root / "wkhost"
        self.log_path = root / "server.log"
        self._config = root / "wk.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        self.root_dir.mkdir(parents=True)
        catalog = Catalog(self.root_dir / "plugins")
        for source in plugins:
            digest = "" if builtin_folder(source) else catalog.propose(source).digest
            catalog.install(InstallPlugin(source, digest=digest))
        own = {**_own_settings(self.root_dir), **(settings or {})}
        # JSON is YAML too.
        self._config.write_text(json.dumps(own), encoding="utf-8")

    def start(self) -> Server:
        """Return when it is ready. Raises BenchError."""
        process = self._process = _spawn(self._config, self.log_path)
        try:
            listening = _wait_ready(process, self.log_path)
        except BaseException:
            self.stop()
            raise
        return Server(
            pid=process.pid,
            tcp=_listening(listening, "tcp"),
            ws=_listening(listening, "ws"),
            wss=_listening(listening, "wss") if "wss" in listening else None,
            http_url=f"http://{listening['http']}",
            data_dir=self.root_dir / "data",
        )

    def stop(self) -> None:
        """Let it end in good order, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            _stop(process)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_output(process)


@contextmanager
def own_server(
    root: Path, plugins: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Iterator[Server]:
    """Run a server with exactly these plugins in the folder `root`. Raises BenchError."""
    server = OwnServer(root, plugins, settings)
    try:
        yield server.start()
    finally:
        server.stop()


def _own_settings(root_dir: Path) -> dict[str, Any]:
    return {
        "rootDir": str(root_dir),
        "addr": "tcp://127.0.0.1:0",
        "wsAddr": "ws://127.0.0.1:0",
        "httpAddr": "127.0.0.1:0",
        "manager.addr": "127.0.0.1:0",
        "logger.level": 3,
    }


def _listening(listening: dict[str, str], kind: str) -> tuple[str, int]:
    address = parse_address(listening[kind])
    return address.host, address.port


def _spawn(config: Path, log_path: Path) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WK_")}
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "wkhost", "--config", str(config), "run", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environ,
            # Ctrl-C is for us; the server is stopped by us.
            start_new_session=True,
        )


def _wait_ready(process: subprocess.Popen[bytes], log_path: Path) -> dict[str, str]:
    """Return the addresses from the server's ready line. Raises BenchError."""
    stdout = process.stdout
    assert stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stdout], [], [], left)[0]:
            raise BenchError(f"the server was not ready within {START_TIMEOUT_S:g} s")
        chunk = os.read(stdout.fileno(), 4096)
        if not chunk:
            text = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            last = " / ".join(text[-_LOG_LINES:]) or "it said nothing"
            raise BenchError(f"the server ended before it was ready: {last}")
        line += chunk
    listening: dict[str, str] = json.loads(line)["listening"]
    return listening


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _close_output(process)


def _close_output(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
