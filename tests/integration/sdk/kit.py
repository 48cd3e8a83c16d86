"""A host for SDK tests: a grpcio server that speaks the public contract, and real plugin processes.

The test says what the host sends and looks at what the plugin answers, frame by frame.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from plugin_sdk.wire.v1 import host_pb2, plugin_pb2
from plugin_sdk.wire.v1.host_pb2_grpc import HostApiServicer, add_HostApiServicer_to_server
from plugin_sdk.wire.v1.plugin_pb2_grpc import HooksServicer, add_HooksServicer_to_server

TOKEN = bytes(range(32))
WAIT_S = 15.0
ROOT = Path(__file__).resolve().parents[3]
MOVE_CONTROL = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3) if sys.argv[1] != '3' else None; "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
BOOT = (
    "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('plugin_sdk', run_name='__main__', alter_sys=True)"
)


class TestHost(HooksServicer, HostApiServicer):
    """One server, one plugin process."""

    __test__ = False

    def __init__(self, folder: Path, *, protocol: int = 1, config: dict[str, Any] | None = None):
        self.folder = folder
        self.plugin_dir = folder / "plugin"
        self.plugin_dir.mkdir()
        self.data_dir = folder / "data"
        self.data_dir.mkdir()
        self.socket = str(folder / "host.sock")
        self.protocol = protocol
        self.config = config or {}
        self.hello = plugin_pb2.Hello()
        self.frames: queue.SimpleQueue[plugin_pb2.PluginFrame] = queue.SimpleQueue()
        self.outgoing: queue.SimpleQueue[plugin_pb2.HostFrame | None] = queue.SimpleQueue()
        self.sent: list[host_pb2.SendMessageRequest] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = ""
        self._log_reader: threading.Thread | None = None
        self._log_changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_HooksServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        add_HostApiServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    # The service

    def Connect(  # noqa: N802 - the name on the wire
        self, requests: Iterator[plugin_pb2.PluginFrame], context: grpc.ServicerContext
    ) -> Iterator[plugin_pb2.HostFrame]:
        self.hello.CopyFrom(next(requests).hello)
        threading.Thread(target=self._pump, args=(requests,), daemon=True).start()
        welcome = plugin_pb2.Welcome(
            protocol=self.protocol,
            plugin_no="test.plugin",
            plugin_version="1",
            generation=1,
            config_json=json.dumps(self.config).encode(),
            config_number=1,
            max_payload_bytes=1 << 20,
        )
        yield plugin_pb2.HostFrame(welcome=welcome)
        while (frame := self.outgoing.get()) is not None:
            yield frame

    def _pump(self, requests: Iterator[plugin_pb2.PluginFrame]) -> None:
        try:
            for frame in requests:
                self.frames.put(frame)
        except grpc.RpcError:
            return  # the plugin ended

    def SendMessage(  # noqa: N802 - the name on the wire
        self, request: host_pb2.SendMessageRequest, context: grpc.ServicerContext
    ) -> host_pb2.SendMessageResponse:
        self.sent.append(request)
        if request.from_uid == "forbidden":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "send.as: forbidden is not granted")
        return host_pb2.SendMessageResponse(message_id=77, message_seq=1, reason_code=1)

    # The process

    def start(self, source: str) -> None:
        """Write main.py and start it."""
        (self.plugin_dir / "main.py").write_text(textwrap.dedent(source))
        self.start_installed()

    def start_installed(self) -> None:
        """Start the Python plugin that stands in its folder."""
        self.start_command([sys.executable, "-I", "-c", BOOT, str(ROOT), "--control-fd", "3"])

    def start_command(self, command: list[str]) -> None:
        """Start a plugin process and give it its control line on descriptor 3."""
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", MOVE_CONTROL, str(read), *command],
            stderr=subprocess.PIPE,
            pass_fds=(read,),
            env={},
            cwd=self.plugin_dir,
        )
        os.close(read)
        line = {
            "socket": self.socket,
            "token": TOKEN.hex(),
            "protocol": self.protocol,
            "plugin_dir": str(self.plugin_dir),
            "data_dir": str(self.data_dir),
            "main": "main.py",
        }
        with os.fdopen(write, "wb") as pipe:
            pipe.write(json.dumps(line).encode() + b"\n")
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()

    def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._log_changed:
                    self.log += line.decode()
                    self._log_changed.notify_all()

    def wait_log(self, text: str) -> None:
        """Wait until the plugin's log contains `text`."""
        with self._log_changed:
            assert self._log_changed.wait_for(lambda: text in self.log, WAIT_S), self.log

    def next_frame(self) -> plugin_pb2.PluginFrame:
        try:
            return self.frames.get(timeout=WAIT_S)
        except queue.Empty:
            raise AssertionError(f"no frame came; log:\n{self.log}") from None

    def ready(self) -> plugin_pb2.Credit:
        """Wait for the credit that ends the handshake."""
        credit = self.next_frame().credit
        assert credit.calls
        return credit

    def call(self, fill: Callable[[plugin_pb2.CallBatch], object], config_number: int = 1) -> None:
        """Send one batch, filled by `fill`."""
        frame = plugin_pb2.HostFrame()
        frame.calls.config_number = config_number
        fill(frame.calls)
        self.outgoing.put(frame)

    def send_calls(self, payloads: dict[int, bytes], *, config_number: int = 1) -> None:
        """One batch of send calls, by call id; the lineage is made of the id."""

        def fill(batch: plugin_pb2.CallBatch) -> None:
            for call_id, payload in payloads.items():
                call = batch.send.add(call_id=call_id, attempt=1, budget_ms=1000, origin="client")
                call.lineage = b"lineage-%d" % call_id
                call.message.payload = payload
                call.message.channel_id = "u2@u1"
                call.message.from_uid = "u1"
                call.message.channel_type = 1

        self.call(fill, config_number)

    def answers(self, count: int) -> dict[int, str]:
        """Gather answers: call id to "continue" or the kind of the verdict, in order of arrival."""
        found: dict[int, str] = {}
        while len(found) < count:
            batch = self.next_frame().verdicts
            for call_id in batch.continued:
                assert call_id not in found
                found[call_id] = "continue"
            for verdict in batch.verdicts:
                assert verdict.call_id not in found
                found[verdict.call_id] = str(verdict.WhichOneof("answer"))
        return found

    def verdicts(self, count: int) -> dict[int, plugin_pb2.Verdict]:
        """Gather verdicts other than continue, by call id."""
        found: dict[int, plugin_pb2.Verdict] = {}
        while len(found) < count:
            for verdict in self.next_frame().verdicts.verdicts:
                found[verdict.call_id] = verdict
        return found

    def wait_exit(self) -> int:
        assert self.process is not None
        return self.process.wait(WAIT_S)

    def vanish(self) -> None:
        """Close every connection at once, as a dying host does."""
        self._server.stop(0).wait()

    def close(self) -> None:
        self.outgoing.put(None)
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        if self._log_reader is not None:
            self._log_reader.join(WAIT_S)
        self._server.stop(0).wait()
