"""The suite with grpcio's synchronous client: `grpc_client_sync.py SOCKET CASE...`."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import grpc

PREFIX = "/conformance.Echo/"
MIB = 1024 * 1024
TIMEOUT_S = 20


def unary(channel: grpc.Channel, name: str) -> Any:
    return channel.unary_unary(PREFIX + name, None, None)


def bidi(channel: grpc.Channel, name: str) -> Any:
    return channel.stream_stream(PREFIX + name, None, None)


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call succeeded")


def stats(channel: grpc.Channel) -> dict[str, int]:
    found: dict[str, int] = json.loads(unary(channel, "Stats")(b"", timeout=TIMEOUT_S))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.005)


def case_unary(channel: grpc.Channel) -> None:
    call = unary(channel, "Unary")
    for data in (b"hello", b"", bytes(range(256)) * 100):
        assert call(data, timeout=TIMEOUT_S) == data


def case_bidi_ping_pong(channel: grpc.Channel) -> None:
    turn = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(200):
            turn.acquire()
            yield b"message %d" % number

    for number, data in enumerate(bidi(channel, "Stream")(requests(), timeout=TIMEOUT_S)):
        assert data == b"message %d" % number
        turn.release()
    assert number == 199


def case_large_message(channel: grpc.Channel) -> None:
    data = bytes(range(256)) * (MIB // 256)
    assert unary(channel, "Unary")(data, timeout=TIMEOUT_S) == data
    assert list(bidi(channel, "Stream")(iter([data] * 4), timeout=TIMEOUT_S)) == [data] * 4


def case_deadline_exceeded(channel: grpc.Channel) -> None:
    code, _ = status_of(lambda: unary(channel, "Sleep")(b"", timeout=0.2))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    code, _ = status_of(lambda: list(bidi(channel, "Hang")(iter([]), timeout=0.2)))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: stats(channel)["hanging"] == 0)


def case_client_cancels(channel: grpc.Channel) -> None:
    before = stats(channel)["cancelled"]
    sleeping = unary(channel, "Sleep").future(b"", timeout=TIMEOUT_S)
    hanging = bidi(channel, "Hang")(iter([]), timeout=TIMEOUT_S)
    wait_for(lambda: stats(channel)["hanging"] == 2)
    sleeping.cancel()
    hanging.cancel()
    wait_for(lambda: stats(channel)["cancelled"] == before + 2)
    assert stats(channel)["hanging"] == 0


def case_error_status(channel: grpc.Channel) -> None:
    text = "不行: é %41 100%\tend"
    code, details = status_of(lambda: unary(channel, "Fail")(text.encode(), timeout=TIMEOUT_S))
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, text)
    code, details = status_of(lambda: unary(channel, "Crash")(b"", timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.INTERNAL
    assert "secret" not in details


def case_unknown_method(channel: grpc.Channel) -> None:
    code, _ = status_of(lambda: unary(channel, "Nothing")(b"x", timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    code, _ = status_of(lambda: list(bidi(channel, "Nothing")(iter([b"x"]), timeout=TIMEOUT_S)))
    assert code == grpc.StatusCode.UNIMPLEMENTED


def case_metadata(channel: grpc.Channel) -> None:
    sent = (("x-text", "a b"), ("x-raw-bin", b"\x00\xff\x01,"), ("x-raw-bin", b""))
    seen = json.loads(unary(channel, "Metadata")(b"", timeout=TIMEOUT_S, metadata=sent))
    assert [pair for pair in seen if pair[0].startswith("x-")] == [
        ["x-text", "a b"],
        ["x-raw-bin", "00ff012c"],
        ["x-raw-bin", ""],
    ]


def case_concurrent_64(channel: grpc.Channel) -> None:
    calls = [unary(channel, "Barrier").future(b"%d" % n, timeout=TIMEOUT_S) for n in range(64)]
    assert [call.result() for call in calls] == [b"%d" % n for n in range(64)]
    more = [unary(channel, "Unary").future(b"%d" % n, timeout=TIMEOUT_S) for n in range(300)]
    assert [call.result() for call in more] == [b"%d" % n for n in range(300)]


def case_half_close(channel: grpc.Channel) -> None:
    assert list(bidi(channel, "Stream")(iter([b"one", b"two"]), timeout=TIMEOUT_S)) == [
        b"one",
        b"two",
    ]
    assert list(bidi(channel, "Stream")(iter([]), timeout=TIMEOUT_S)) == []


def case_stalled_reader(channel: grpc.Channel) -> None:
    stalled = bidi(channel, "Flood")(iter([]), timeout=TIMEOUT_S)
    next(stalled)
    last = -1
    while (now := stats(channel)["flooded"]) != last:  # until flow control has stopped it
        last = now
        for number in range(50):
            assert unary(channel, "Unary")(b"%d" % number, timeout=TIMEOUT_S) == b"%d" % number
    assert last < 16 * MIB, last
    stalled.cancel()


def case_oversize_message(channel: grpc.Channel) -> None:
    data = bytes(300 * 1024)
    code, _ = status_of(lambda: unary(channel, "Small")(data, timeout=TIMEOUT_S))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    code, _ = status_of(lambda: list(bidi(channel, "SmallStream")(iter([data]), timeout=TIMEOUT_S)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unary(channel, "Unary")(b"still here", timeout=TIMEOUT_S) == b"still here"


def case_gzip_refused(channel: grpc.Channel) -> None:
    call = unary(channel, "Unary")
    gzip = grpc.Compression.Gzip
    code, _ = status_of(lambda: call(b"x" * 1000, timeout=TIMEOUT_S, compression=gzip))
    assert code == grpc.StatusCode.UNIMPLEMENTED


def case_keepalive(channel: grpc.Channel) -> None:
    hanging = bidi(channel, "Hang")(iter([]), timeout=TIMEOUT_S)
    next(hanging)
    time.sleep(1)  # ten pings at the interval below, each to be answered within 300 ms
    assert hanging.is_active()
    hanging.cancel()


KEEPALIVE = [
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_timeout_ms", 300),
    ("grpc.http2.max_pings_without_data", 0),
]


def run(path: str, case: str) -> dict[str, object]:
    options = KEEPALIVE if case == "keepalive" else []
    try:
        with grpc.insecure_channel("unix:" + path, options=options) as channel:
            globals()["case_" + case](channel)
    except BaseException:  # noqa: BLE001 - reported to the parent
        return {"case": case, "ok": False, "detail": traceback.format_exc()}
    return {"case": case, "ok": True, "detail": ""}


def hold(path: str) -> None:
    """Open a call, say so, and wait to be killed."""
    with grpc.insecure_channel("unix:" + path) as channel:
        for _ in bidi(channel, "Hang")(iter([])):
            print("open", flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["hold"]:
        hold(sys.argv[1])
    for name in sys.argv[2:]:
        print(json.dumps(run(sys.argv[1], name)), flush=True)
