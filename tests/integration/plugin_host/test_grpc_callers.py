"""Real grpcio that calls as hard as it can: never closed, and others keep their turns."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from wkhost.errors import RemoteProtocolError
from wkhost.plugin_host.grpc import CallInfo, GrpcConnection, Limits, UnaryMethod, listen_unix

_CALLER = """
import asyncio, sys
import grpc
path, count, tasks, size = sys.argv[1], *map(int, sys.argv[2:])
left = count

async def main():
    async with grpc.aio.insecure_channel("unix:" + path) as channel:
        method = channel.unary_unary("/t.T/Call")
        async def caller():
            global left
            while left > 0:
                left -= 1
                await method(bytes(size))
        await asyncio.gather(*(caller() for _ in range(tasks)))

asyncio.run(main())
"""


async def _served(path: Path, arguments: list[int], method: UnaryMethod, limits: Limits) -> None:
    """Serve one caller to its end; raises what the connection ended with."""
    listener = listen_unix(path)
    command = [sys.executable, "-c", _CALLER, str(path), *map(str, arguments)]
    async with trio.open_nursery() as nursery:
        caller = await nursery.start(
            partial(trio.run_process, command, capture_stderr=True, check=False)
        )
        await trio.lowlevel.wait_readable(listener)
        sock, _ = listener.accept()
        listener.close()
        error = await GrpcConnection(sock, {"/t.T/Call": method}, limits=limits).run()
        if error is not None:
            raise error
        assert await caller.wait() == 0


FAST = Limits(calls_burst=100_000, calls_per_s=100_000)


@pytest.mark.parametrize("size", [0, 3, 7])
async def test_a_heavy_caller_is_never_closed_for_what_grpcio_does(
    size: int, tmp_path: Path
) -> None:
    """1,000 coroutines, tiny questions, empty answers: grpcio adds windows and probes to each."""

    async def nothing(data: bytes, call: CallInfo) -> bytes:
        return b""

    with trio.fail_after(60):
        try:
            await _served(tmp_path / "s", [6000, 1000, size], UnaryMethod(nothing), FAST)
        except* RemoteProtocolError as errors:
            pytest.fail(f"closed: {errors.exceptions[0]}")
