"""A whole server as a process: `wkhost run` on free ports, in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import trio
import yaml

from wkhost.plugin_host.package import builtin_folder, inspect_package

START_S = 30.0
STOP_S = 15.0
_QUIET = {"debug", "info", "warning"}


class ServerProcess:
    """One `wkhost run`. `root` survives restarts; `log_path` collects what it says."""

    def __init__(self, root: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.config = root / "wk.yaml"
        self.log_path = root / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.listening: dict[str, str] = {}
        root.mkdir(parents=True, exist_ok=True)
        tree: dict[str, Any] = {
            "rootDir": str(root / "data"),
            "addr": "tcp://127.0.0.1:0",
            "wsAddr": "ws://127.0.0.1:0",
            "httpAddr": "127.0.0.1:0",
            "manager.addr": "127.0.0.1:0",
        }
        tree.update(settings or {})
        self._tree = tree
        self._write_config()

    def _write_config(self) -> None:
        self.config.write_text(yaml.safe_dump(self._tree))

    def keep_addresses(self) -> None:
        """Listen at the same addresses after the next start, as a real server does."""
        names = {"tcp": "addr", "ws": "wsAddr", "wss": "wssAddr"}
        names |= {"http": "httpAddr", "manager": "manager.addr"}
        for kind, address in self.listening.items():
            scheme = "" if kind in ("http", "manager") else f"{kind}://"
            self._tree[names[kind]] = f"{scheme}{address.removeprefix(scheme)}"
        self._write_config()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def address(self, kind: str = "tcp") -> tuple[str, int]:
        """Return (host, port) of a listener: tcp, ws, wss or http."""
        host, _, port = self.listening[kind].rpartition(":")
        return host, int(port)

    @property
    def api(self) -> str:
        return f"http://{self.listening['http']}"

    async def start(self, *arguments: str) -> None:
        """Start, and wait until it says that it is ready."""
        self.process = self._spawn(arguments)
        assert self.process.stdout is not None
        line = b""
        async with trio.lowlevel.FdStream(os.dup(self.process.stdout.fileno())) as out:
            with trio.move_on_after(START_S):
                while not line.endswith(b"\n"):
                    chunk = await out.receive_some(4096)
                    if not chunk:
                        break
                    line += chunk
        if not line.endswith(b"\n"):
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.log()}")
        self.listening = json.loads(line)["listening"]

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "wkhost", "--config", str(self.config), "run", "--json"]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )

    async def terminate(self) -> int:
        """SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end; return the exit code."""
        assert self.process is not None
        with trio.fail_after(STOP_S):
            while self.process.poll() is None:  # noqa: ASYNC110 - a child has no event to wait for
                await trio.sleep(0.005)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL, and reap."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def trouble(self) -> list[str]:
        """Return the lines of the log that tell of an error, or are no log records at all."""
        return [line for line in self.log().splitlines() if _level(line) not in _QUIET]

    def peak_memory_bytes(self) -> int:
        """Most resident memory so far of the server and the processes below it, added up."""
        return sum(_peak_bytes(pid) for pid in _family(self.pid))

    async def post(self, path: str, **body: Any) -> Any:
        """POST to the business API; the decoded answer of a request that must succeed."""
        headers = {"token": str(self._tree.get("managerToken", ""))}
        async with httpx.AsyncClient(base_url=self.api, trust_env=False) as client:
            answer = await client.post(path, json=body, headers=headers)
        assert answer.status_code == httpx.codes.OK, f"{path}: {answer.text}"
        return answer.json()

    async def plugin(self, *arguments: str) -> Any:
        """Run `wkhost plugin ... --json`; what it printed, decoded."""
        result = await trio.to_thread.run_sync(lambda: self.cli("plugin", *arguments, "--json"))
        return json.loads(result.stdout)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `wkhost` command against this server. An install is agreed to."""
        if arguments[:2] == ("plugin", "install") and "--yes" not in arguments:
            arguments = (*arguments, *agreed(arguments[2:]))
        result = subprocess.run(
            [sys.executable, "-m", "wkhost", "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"wkhost {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result


def agreed(arguments: Sequence[str]) -> list[str]:
    """Return the options of an install that agree to the packages named by `arguments`."""
    words: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in takewhile(lambda word: not word.startswith("--"), arguments):
            if builtin_folder(source) is None:
                digest = inspect_package(source, Path(folder)).digest
                words += ["--digest", f"sha256:{digest}"]
    return ["--yes", *words] if words else []


def _level(line: str) -> str:
    try:
        return str(json.loads(line)["level"])
    except (ValueError, KeyError, TypeError):
        return "not a record"


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@asynccontextmanager
async def running_server(
    root: Path, settings: Mapping[str, Any] | None = None, *arguments: str
) -> AsyncIterator[ServerProcess]:
    """Run a server for the time of the block; at the end it must stop by itself with 0."""
    server = ServerProcess(root, settings)
    await server.start(*arguments)
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            with trio.CancelScope(shield=True):
                code = await server.terminate()
            assert code == 0, server.log()
