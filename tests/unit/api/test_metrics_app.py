"""`GET /metrics`: the text of what the kernel counted, or an error, never made-up zeros."""

from __future__ import annotations

import asyncio
from typing import Any

from wkhost.api.kernel import Kernel
from wkhost.api.metrics import MetricsApp
from wkhost.link.contract import Error, ErrorKind, GetMetrics, Metrics, Request, Response
from wkhost.link.errors import LinkLostError


class OneAnswer:
    """A link that answers everything with one thing."""

    def __init__(self, answer: Response | Exception) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    async def ask(self, request: Request) -> Response:
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def get(link: OneAnswer, path: str = "/metrics", method: str = "GET") -> tuple[int, bytes]:
    events: list[Any] = []

    async def send(event: Any) -> None:
        events.append(event)

    async def receive() -> Any:
        raise AssertionError("there is no body to read")

    app = MetricsApp(Kernel(link))
    asyncio.run(app({"type": "http", "method": method, "path": path}, receive, send))
    start, body = events
    return start["status"], body["body"]


def test_the_kernels_numbers_are_written_as_text() -> None:
    link = OneAnswer(Metrics({"wukongim_connections_total": [([], 3.0)]}, {}))
    status, body = get(link)
    assert (status, link.asked) == (200, [GetMetrics()])
    assert b"\nwukongim_connections_total 3.0\n" in body


def test_a_scrape_that_fails_does_not_look_like_zeros() -> None:
    for failure in (
        Error(ErrorKind.INTERNAL, "the server failed to answer; see its log"),
        LinkLostError("the server closed the link", sent=True),
    ):
        status, body = get(OneAnswer(failure))
        assert status == 503
        assert b"wukongim" not in body


def test_nothing_else_is_served_there() -> None:
    link = OneAnswer(Metrics({}, {}))
    assert get(link, "/message/send")[0] == 404
    assert get(link, method="POST")[0] == 404
    assert link.asked == []
