"""Requests that do not come to their end, against uvicorn with our protocol."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from wkhost.api.http_protocol import BoundedHttpProtocol

REQUEST_S = 0.2
LIMIT_S = 5.0
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


class Impatient(BoundedHttpProtocol):
    request_s = REQUEST_S


async def app(
    scope: object, receive: Callable[[], Awaitable[dict[str, object]]], send: object
) -> None:
    assert callable(send)
    while (event := await receive()).get("more_body"):
        pass
    if event["type"] == "http.request":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
        )
        await send({"type": "http.response.body", "body": b""})


async def talk(pieces: list[bytes]) -> tuple[int, float]:
    """Send each piece half a deadline after the one before; (answers, seconds to the end)."""
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        loop = asyncio.get_running_loop()
        begin = loop.time()
        reading = asyncio.create_task(reader.read())
        for piece in pieces:
            if reading.done():
                break
            writer.write(piece)
            await asyncio.wait((reading,), timeout=REQUEST_S / 2)
        answer = await asyncio.wait_for(reading, LIMIT_S)
        took_s = loop.time() - begin
        writer.close()
        server.should_exit = True
        await serving
    return answer.count(b"200 OK"), took_s


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ([], 0),
        ([b"\r\n"] * 20, 0),
        ([WHOLE[i : i + 1] for i in range(len(WHOLE))], 0),
        ([HEAD, *[b"x"] * 3, b""], 0),
        ([WHOLE + HEAD], 1),
        ([WHOLE, *[b"\r\n"] * 20], 1),
    ],
    ids=["silent", "blank", "head", "body", "second-body", "after-an-answer"],
)
def test_a_request_that_does_not_end_is_ended(pieces: list[bytes], answers: int) -> None:
    found, took_s = asyncio.run(talk(pieces))
    assert found == answers
    assert took_s < 5 * REQUEST_S


def test_requests_that_arrive_in_time_take_a_connection_as_long_as_they_like() -> None:
    end = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    half = [HEAD, b"body"]
    found, took_s = asyncio.run(talk([*half * 3, WHOLE, end]))
    assert found == 5
    assert took_s > 2 * REQUEST_S
