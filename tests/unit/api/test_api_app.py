"""The ASGI application without a server: what a request ends in when things go wrong."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from wkhost.api.app import ApiApp
from wkhost.api.kernel import Kernel
from wkhost.api.routes import ROUTES
from wkhost.link import contract
from wkhost.link.errors import LinkBusyError, LinkLostError

Event = MutableMapping[str, Any]
BODY = b'{"uid":"u","token":"t"}'


class StubLink:
    """Answers with what it was given, or raises it."""

    def __init__(self, outcome: contract.Response | Exception) -> None:
        self.outcome = outcome
        self.asked: list[contract.Request] = []

    async def ask(self, request: contract.Request) -> contract.Response:
        self.asked.append(request)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def call(link: StubLink, *events: Event, limit: int = 1000) -> tuple[int, bytes] | None:
    """POST /user/token in these receive events; None when the app answered nothing."""
    waiting, sent = list(events), list[Event]()

    async def receive() -> Event:
        return waiting.pop(0)

    async def send(event: Event) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/user/token",
        "query_string": b"",
        "headers": [],
    }
    await ApiApp(Kernel(link), ROUTES, max_body_bytes=limit)(scope, receive, send)
    return (sent[0]["status"], sent[1]["body"]) if sent else None


def part(body: bytes, *, more: bool = False) -> Event:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_pieces_is_put_together() -> None:
    link = StubLink(contract.UserStatus(200))
    answer = await call(link, part(BODY[:5], more=True), part(BODY[5:], more=True), part(b""))
    assert answer == (200, b'{"status":200}')
    assert link.asked == [contract.SetUserToken("u", "t")]


async def test_a_client_that_leaves_before_its_body_is_whole_changes_nothing() -> None:
    link = StubLink(contract.UserStatus(200))
    assert await call(link, part(BODY, more=True), {"type": "http.disconnect"}) is None
    assert await call(link, {"type": "http.disconnect"}) is None
    assert link.asked == []


async def test_a_body_over_the_limit_is_not_read_on() -> None:
    link = StubLink(contract.UserStatus(200))
    answer = await call(link, part(BODY, more=True), limit=10)  # a second receive would fail
    assert answer is not None
    assert answer[0] == 400
    assert link.asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LinkBusyError("busy"), 5001),
        (LinkLostError("lost", sent=True), 5003),
        (LinkLostError("never left", sent=False), 5003),
    ],
)
async def test_a_failing_link_is_400_with_its_number(error: Exception, code: int) -> None:
    answer = await call(StubLink(error), part(BODY))
    assert answer is not None
    assert answer[0] == 400
    assert json.loads(answer[1]) == {"msg": str(error), "status": 400, "code": code}


async def test_an_unforeseen_failure_is_logged_and_an_empty_500() -> None:
    with capture_logs() as entries:
        assert await call(StubLink(ZeroDivisionError()), part(BODY)) == (500, b"")
    assert [entry["event"] for entry in entries] == ["request failed"]
