"""The suite with grpcio's asyncio client: `grpc_client_aio.py SOCKET CASE...`."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import grpc

PREFIX = "/conformance.Echo/"
MIB = 1024 * 1024
TIMEOUT_S = 20
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_timeout_ms", 300),
    ("grpc.http2.max_pings_without_data", 0),
]


def unary(channel: grpc.aio.Channel, name: str) -> Any:
    return channel.unary_unary(PREFIX + name, None, None)


def bidi(channel: grpc.aio.Channel, name: str, timeout: float = TIMEOUT_S) -> Any:
    call: Any = channel.stream_stream(PREFIX + name, None, None)
    return call(timeout=timeout)


async def read_all(call: AsyncIterable[bytes]) -> list[bytes]:
    return [data async for data in call]


async def status_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call succeeded")


async def stats(channel: grpc.aio.Channel) -> dict[str, int]:
    found: dict[str, int] = json.loads(await unary(channel, "Stats")(b"", timeout=TIMEOUT_S))
    return found


async def wait_for(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 - asks the server
            await asyncio.sleep(0.005)


async def case_unary(channel: grpc.aio.Channel) -> None:
    for data in (b"hello", b"", bytes(range(256)) * 100):
        assert await unary(channel, "Unary")(data, timeout=TIMEOUT_S) == data


async def case_bidi_ping_pong(channel: grpc.aio.Channel) -> None:
    call = bidi(channel, "Stream")
    for number in range(200):
        await call.write(b"message %d" % number)
        assert await call.read() == b"message %d" % number
    await call.done_writing()
    assert await call.code() == grpc.StatusCode.OK


async def case_large_message(channel: grpc.aio.Channel) -> None:
    data = bytes(range(256)) * (MIB // 256)
    assert await unary(channel, "Unary")(data, timeout=TIMEOUT_S) == data
    call = bidi(channel, "Stream")
    for _ in range(4):
        await call.write(data)
        assert await call.read() == data
    await call.done_writing()
    assert await call.code() == grpc.StatusCode.OK


async def case_deadline_exceeded(channel: grpc.aio.Channel) -> None:
    code, _ = await status_of(unary(channel, "Sleep")(b"", timeout=0.2))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    code, _ = await status_of(read_all(bidi(channel, "Hang", 0.2)))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED

    async def ended() -> bool:
        return (await stats(channel))["hanging"] == 0

    await wait_for(ended)


async def case_client_cancels(channel: grpc.aio.Channel) -> None:
    before = (await stats(channel))["cancelled"]
    sleeping = unary(channel, "Sleep")(b"", timeout=TIMEOUT_S)
    hanging = bidi(channel, "Hang")

    async def both_there() -> bool:
        return (await stats(channel))["hanging"] == 2

    async def both_cancelled() -> bool:
        return (await stats(channel))["cancelled"] == before + 2

    await wait_for(both_there)
    sleeping.cancel()
    hanging.cancel()
    await wait_for(both_cancelled)
    assert (await stats(channel))["hanging"] == 0


async def case_error_status(channel: grpc.aio.Channel) -> None:
    text = "不行: é %41 100%\tend"
    code, details = await status_of(unary(channel, "Fail")(text.encode(), timeout=TIMEOUT_S))
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, text)
    code, details = await status_of(unary(channel, "Crash")(b"", timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.INTERNAL
    assert "secret" not in details


async def case_unknown_method(channel: grpc.aio.Channel) -> None:
    code, _ = await status_of(unary(channel, "Nothing")(b"x", timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    code, _ = await status_of(read_all(bidi(channel, "Nothing")))
    assert code == grpc.StatusCode.UNIMPLEMENTED


async def case_metadata(channel: grpc.aio.Channel) -> None:
    sent = (("x-text", "a b"), ("x-raw-bin", b"\x00\xff\x01,"), ("x-raw-bin", b""))
    answer = await unary(channel, "Metadata")(b"", timeout=TIMEOUT_S, metadata=sent)
    assert [pair for pair in json.loads(answer) if pair[0].startswith("x-")] == [
        ["x-text", "a b"],
        ["x-raw-bin", "00ff012c"],
        ["x-raw-bin", ""],
    ]


async def case_concurrent_64(channel: grpc.aio.Channel) -> None:
    for name, count in (("Barrier", 64), ("Unary", 300)):
        data = [b"%d" % number for number in range(count)]
        call = unary(channel, name)
        assert await asyncio.gather(*(call(d, timeout=TIMEOUT_S) for d in data)) == data


async def case_half_close(channel: grpc.aio.Channel) -> None:
    for data in ([b"one", b"two"], []):
        call = bidi(channel, "Stream")
        for message in data:
            await call.write(message)
        await call.done_writing()
        assert await read_all(call) == data


async def case_stalled_reader(channel: grpc.aio.Channel) -> None:
    stalled = bidi(channel, "Flood")
    await stalled.read()
    last = -1
    while (now := (await stats(channel))["flooded"]) != last:  # until flow control stops it
        last = now
        for number in range(50):
            data = b"%d" % number
            assert await unary(channel, "Unary")(data, timeout=TIMEOUT_S) == data
    assert last < 16 * MIB, last
    stalled.cancel()


async def case_oversize_message(channel: grpc.aio.Channel) -> None:
    data = bytes(300 * 1024)
    code, _ = await status_of(unary(channel, "Small")(data, timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    call = bidi(channel, "SmallStream")
    await call.write(data)
    code, _ = await status_of(read_all(call))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await unary(channel, "Unary")(b"still here", timeout=TIMEOUT_S) == b"still here"


async def case_gzip_refused(channel: grpc.aio.Channel) -> None:
    call = unary(channel, "Unary")
    gzip = grpc.Compression.Gzip
    code, _ = await status_of(call(b"x" * 1000, timeout=TIMEOUT_S, compression=gzip))
    assert code == grpc.StatusCode.UNIMPLEMENTED


async def case_keepalive(channel: grpc.aio.Channel) -> None:
    hanging = bidi(channel, "Hang")
    await hanging.read()
    await asyncio.sleep(1)  # ten pings, each to be answered within 300 ms
    assert not hanging.done()
    hanging.cancel()


async def run(path: str, case: str) -> dict[str, object]:
    options = KEEPALIVE if case == "keepalive" else []
    try:
        async with grpc.aio.insecure_channel("unix:" + path, options=options) as channel:
            await globals()["case_" + case](channel)
    except BaseException:  # noqa: BLE001 - reported to the parent
        return {"case": case, "ok": False, "detail": traceback.format_exc()}
    return {"case": case, "ok": True, "detail": ""}


async def hold(path: str) -> None:
    """Open a call, say so, and wait to be killed."""
    async with grpc.aio.insecure_channel("unix:" + path) as channel:
        async for _ in bidi(channel, "Hang"):
            print("open", flush=True)


async def main() -> None:
    if sys.argv[2:] == ["hold"]:
        await hold(sys.argv[1])
    for name in sys.argv[2:]:
        print(json.dumps(await run(sys.argv[1], name)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
