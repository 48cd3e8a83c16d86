"""The naive way to ask a plugin: one unary gRPC call per message, with grpc.aio on both sides.

What `bench hooks` compares the batched stream with, in two processes: `client` starts `server`,
keeps calls in flight, and prints its figures as JSON. The message, its encoding, the handler's view
of it and the event loop are those of the stream.

    python -m wkhost.bench.unary client SOCKET INFLIGHT WARMUP_S DURATION_S
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from array import array
from time import monotonic, process_time
from typing import Any

import grpc
import grpc.aio
import msgspec
import uvloop

from plugin_sdk.wire.v1 import plugin_pb2
from wkhost.bench import calls
from wkhost.bench.samples import percentiles, ratio
from wkhost.bench.usage import cpu_s
from wkhost.hooks.target import SendCall
from wkhost.plugin_host import codec

METHOD = "/wkhost.bench.Unary/Send"
_READY = b"ready\n"
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0))


async def _answer(call: plugin_pb2.SendCall, context: Any) -> plugin_pb2.Verdict:
    return plugin_pb2.Verdict(call_id=call.call_id)


async def serve(path: str) -> None:
    """Answer every call with continue until killed."""
    server = grpc.aio.server(options=_OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(
        _answer,
        request_deserializer=plugin_pb2.SendCall.FromString,
        response_serializer=plugin_pb2.Verdict.SerializeToString,
    )
    service, _, name = METHOD[1:].partition("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: method}),)
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    await server.wait_for_termination()


class Client:
    """Keeps a number of calls in flight, each made by a task of its own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ask: Any = channel.unary_unary(
            METHOD,
            request_serializer=_encode,
            response_deserializer=plugin_pb2.Verdict.FromString,
        )
        self._next_id = 0
        self._begin = self._end = float("inf")
        self.latencies = array("d")
        self.calls = 0

    async def run(self, inflight: int, warmup_s: float, duration_s: float, pid: int) -> bytes:
        """Return the figures as JSON; `pid` is the server."""
        tasks = [asyncio.create_task(self._keep_asking()) for _ in range(inflight)]
        await asyncio.sleep(warmup_s)
        own, theirs = process_time(), cpu_s(pid)
        self._begin = monotonic()
        self._end = self._begin + duration_s
        await asyncio.sleep(duration_s)
        seconds = monotonic() - self._begin
        own, theirs = process_time() - own, cpu_s(pid) - theirs
        await asyncio.gather(*tasks)
        return msgspec.json.encode(
            calls.CallFigures(
                calls=self.calls,
                calls_per_s=ratio(self.calls, seconds, 1),
                call_ms=percentiles(self.latencies),
                cpu_us_caller=ratio(own * 1e6, self.calls),
                cpu_us_plugin=ratio(theirs * 1e6, self.calls),
                mean_batch=1.0,
            )
        )

    async def _keep_asking(self) -> None:
        while (start := monotonic()) < self._end:
            call_id = self._next_id = self._next_id + 1
            verdict = await self._ask(calls.send_call(call_id, start))
            if verdict.call_id != call_id:
                raise RuntimeError(f"call {call_id} was answered as {verdict.call_id}")
            now = monotonic()
            if self._begin <= now < self._end:
                self.calls += 1
                self.latencies.append(now - start)


def _encode(call: SendCall) -> bytes:
    wire = plugin_pb2.SendCall()
    wire.call_id = call.call_id
    wire.attempt = 1
    wire.budget_ms = int(calls.BUDGET_S * 1000)
    codec.fill_message(wire.message, call.message, True)
    wire.origin = call.origin.door
    wire.conn_id = call.origin.conn_id
    wire.device_id = call.origin.device_id
    wire.device_flag = call.origin.device_flag
    return wire.SerializeToString()


def ask(path: str, inflight: int, warmup_s: float, duration_s: float) -> bytes:
    """Start a server and load it; return the figures as JSON."""
    server = subprocess.Popen(
        [sys.executable, "-m", "wkhost.bench.unary", "server", path], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        if server.stdout.readline() != _READY:
            raise RuntimeError("the unary server did not start")
        return uvloop.run(_load(path, inflight, warmup_s, duration_s, server.pid))
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


async def _load(path: str, inflight: int, warmup_s: float, duration_s: float, pid: int) -> bytes:
    async with grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS) as channel:
        return await Client(channel).run(inflight, warmup_s, duration_s, pid)


def main(arguments: list[str]) -> None:
    role, path, *rest = arguments
    if role == "server":
        uvloop.run(serve(path))
        return
    inflight, warmup_s, duration_s = rest
    figures = ask(path, int(inflight), float(warmup_s), float(duration_s))
    sys.stdout.buffer.write(figures)


if __name__ == "__main__":
    main(sys.argv[1:])
