"""The AI moderator against a real HTTP server: verdicts, deadline, policy, cache."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from plugin_sdk import Continue, Refuse, Replace
from plugin_sdk.testing import SyncPluginTest
from plugins.moderation.main import Moderation


class Endpoint(ThreadingHTTPServer):
    """Flags texts with "bad" in them; `gate` closed makes it hang; `status` and `body` override."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.status = 200
        self.body: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/moderations"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A plugin that gave up waiting has closed its end; anything else is a fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request["key"] = self.headers.get("authorization")
        request["path"] = self.path
        self.server.requests.append(request)
        self.server.gate.wait(10)
        bad = "bad" in request["input"]
        result = {"flagged": bad, "categories": {"violence": bad, "hate": False}}
        body = self.server.body or json.dumps({"results": [result]}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def plugin(
    endpoint: Endpoint, *, secrets: dict[str, str] | None = None, **ai: Any
) -> SyncPluginTest:
    lists = [
        {"name": "no", "words": ["forbidden"]},
        {"name": "soft", "words": ["darn"], "action": "mask"},
    ]
    config = {"lists": lists, "ai": {"url": endpoint.url, "timeout_ms": 5000, **ai}}
    return SyncPluginTest(Moderation, config=config, secrets=secrets)


def text(content: str) -> bytes:
    return json.dumps({"type": 1, "content": content}).encode()


def test_flagged_texts_are_refused_and_others_go_on(endpoint: Endpoint) -> None:
    with plugin(endpoint, secrets={"ai_key": "k1"}, model="m1") as t:
        assert t.send(text("a bad text")) == Refuse(11, "refused by moderation")
        assert t.send(text("a good text")) == Continue()
        assert t.send(text("darn good")) == Replace(text("**** good"))
        t.stop()
    first = endpoint.requests[0]
    assert first["path"] == "/v1/moderations"
    assert (first["key"], first["model"], first["input"]) == ("Bearer k1", "m1", "a bad text")


def test_a_rotated_key_is_used_from_the_next_request(endpoint: Endpoint) -> None:
    with plugin(endpoint, secrets={"ai_key": "first"}) as t:
        t.send(text("one"))
        t.secrets_update({"ai_key": "second"})
        t.send(text("two"))
        t.secrets_update({})
        t.send(text("three"))
        t.stop()
    keys = [request["key"] for request in endpoint.requests]
    assert keys == ["Bearer first", "Bearer second", None]


def test_words_decide_without_asking(endpoint: Endpoint) -> None:
    with plugin(endpoint) as t:
        assert isinstance(t.send(text("forbidden")), Refuse)
        t.stop()
    assert endpoint.requests == []


def test_only_the_named_categories_count(endpoint: Endpoint) -> None:
    with plugin(endpoint, categories=["hate"]) as t:
        assert t.send(text("bad")) == Continue()
        t.stop()
    with plugin(endpoint, categories=["violence"]) as t:
        assert isinstance(t.send(text("bad")), Refuse)
        t.stop()


def test_an_answer_is_remembered_within_the_cache_size(endpoint: Endpoint) -> None:
    with plugin(endpoint, cache_size=1) as t:
        t.send(text("one"))
        t.send(text("one"))
        assert len(endpoint.requests) == 1
        t.send(text("two"))
        t.send(text("one"))
        assert len(endpoint.requests) == 3
        t.stop()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("open", Continue()), ("closed", Refuse(15, "moderation is not available"))],
)
def test_no_answer_in_time_is_decided_by_policy(
    endpoint: Endpoint, policy: str, expected: object
) -> None:
    endpoint.gate.clear()
    with plugin(endpoint, policy=policy, timeout_ms=50) as t:
        assert t.send(text("bad")) == expected
        endpoint.gate.set()
        t.stop()


@pytest.mark.parametrize(
    ("status", "body"), [(500, None), (200, b"no json"), (200, b'{"results": 3}'), (200, b"[]")]
)
def test_a_wrong_answer_is_decided_by_policy(
    endpoint: Endpoint, status: int, body: bytes | None
) -> None:
    endpoint.status, endpoint.body = status, body
    with plugin(endpoint, policy="closed") as t:
        assert t.send(text("fine")) == Refuse(15, "moderation is not available")
        t.stop()


def test_a_dead_endpoint_keeps_the_masks_under_an_open_policy(endpoint: Endpoint) -> None:
    with plugin(endpoint, url="http://127.0.0.1:1/v1/moderations") as t:
        assert t.send(text("darn bad")) == Replace(text("**** bad"))
        t.stop()
