"""The API over real HTTP: envelopes, routing, shapes, hostile requests."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import trio

from tests.kit.api_server import ServedApi, serve_api, serve_api_in_thread
from tests.kit.fake_service import FakeService
from wkhost.link import contract
from wkhost.types import SYSTEM_UID, Flags, Setting, person_channel_id

HELLO = base64.b64encode(b"hello").decode()
SEND = {"from_uid": "a", "channel_id": "g", "channel_type": 2, "payload": HELLO}


class Api:
    """A served API, the fake behind it, and a client."""

    def __init__(self, served: ServedApi, service: FakeService, client: httpx.AsyncClient) -> None:
        self.served = served
        self.service = service
        self.client = client

    async def post(self, path: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(path, content=content)

    async def refused(self, path: str, body: Any) -> tuple[str, int]:
        """The text and code of a 400."""
        response = await self.post(path, body)
        assert response.status_code == 400, response.text
        answer = response.json()
        assert answer["status"] == 400
        return answer["msg"], answer["code"]

    async def healthy(self) -> bool:
        return (await self.client.get("/health")).content == b'{"status":"ok"}'


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[ServedApi, FakeService]]:
    service = FakeService()
    with serve_api_in_thread(service, max_body_bytes=256 * 1024) as served:
        yield served, service


@pytest.fixture
async def api(shared: tuple[ServedApi, FakeService]) -> AsyncIterator[Api]:
    served, service = shared
    service.reset()
    async with httpx.AsyncClient(base_url=served.base, trust_env=False) as client:
        yield Api(served, service, client)


async def test_every_answer_carries_cors_and_its_content_type(api: Api) -> None:
    for response in (
        await api.client.get("/health"),
        await api.post("/message/send", b""),
        await api.client.get("/nowhere"),
        await api.client.options("/nowhere"),
        await api.client.get("/health/"),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-allow-methods"] == (
            "POST, OPTIONS, GET, PUT,DELETE,PATCH"
        )
    answer = await api.client.get("/health")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.content == b'{"status":"ok"}'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/"),
        ("GET", "/message/send"),
        ("HEAD", "/health"),
        ("PUT", "/channel"),
        ("POST", "/docs"),
        ("GET", "/nowhere/"),
        ("POST", "/health/"),
    ],
)
async def test_unknown_paths_and_wrong_methods_are_404(api: Api, method: str, path: str) -> None:
    response = await api.client.request(method, path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "text/plain"
    assert response.text == ("" if method == "HEAD" else "404 page not found")


async def test_a_trailing_slash_redirects_with_its_query(api: Api) -> None:
    response = await api.client.get("/channel/max_message_seq/?channel_id=%40a&x=1")
    assert response.status_code == 301
    assert response.headers["location"] == "/channel/max_message_seq?channel_id=%40a&x=1"
    response = await api.post("/message/send/", SEND)
    assert (response.status_code, response.headers["location"]) == (307, "/message/send")
    assert (await api.client.options("/message/send/")).status_code == 204


async def test_the_manager_token_comes_before_everything_but_the_redirect() -> None:
    async with (
        serve_api(manager_token="sécret") as served,
        httpx.AsyncClient(base_url=served.base, trust_env=False) as client,
    ):
        for method, path in (
            ("GET", "/health"),
            ("OPTIONS", "/x"),
            ("GET", "/x"),
            ("GET", "/docs"),
        ):
            for headers in ({}, {"token": "wrong"}):
                response = await client.request(method, path, headers=headers)
                assert (response.status_code, response.content) == (401, b"")
        assert (await client.get("/health/")).status_code == 301
        token = {b"token": "sécret".encode()}
        assert (await client.get("/health", headers=token)).status_code == 200


async def test_bad_json_is_answered_raw_prefixed_or_fixed(api: Api) -> None:
    assert await api.refused("/user/token", b"") == ("EOF", 2003)
    assert await api.refused("/channel", b"{") == ("数据格式有误！: unexpected EOF", 2003)
    assert await api.refused("/channel/info", b"{") == ("数据格式有误！", 2003)


async def test_a_send_says_what_became_of_the_message(api: Api) -> None:
    answer = (await api.post("/message/send", {**SEND, "client_msg_no": "n1"})).json()
    assert answer["status"] == 200
    assert answer["data"].keys() == {"message_id", "client_msg_no", "message_seq"}
    again = (await api.post("/message/send", {**SEND, "client_msg_no": "n1"})).json()
    assert again == answer
    await api.post("/channel", {"channel_id": "g", "channel_type": 2, "ban": 1})
    refused = (await api.post("/message/send", SEND)).json()
    assert refused["status"] == 200
    assert refused["data"]["message_seq"] == 0
    assert refused["data"]["reason_code"] == 19
    assert refused["data"]["reason"] == "channel closed"
    assert refused["data"]["message_id"] > answer["data"]["message_id"]


async def test_a_send_is_translated_field_by_field(api: Api) -> None:
    header = {"no_persist": 1, "red_dot": True, "sync_once": 0}
    more = {"header": header, "client_msg_no": "n", "is_stream": 1, "expire": 60, "setting": 128}
    await api.post("/message/send", {**SEND, **more})
    await api.post("/message/send", {"channel_id": "b", "channel_type": 1, "payload": {"a": 1}})
    commands = {"subscribers": ["x", ""], "header": {"sync_once": 1}, "payload": HELLO}
    assert (await api.post("/message/send", commands)).json() == {"status": 200}
    assert api.service.seen == [
        contract.SendMessage(
            "a", "g", 2, b"hello", "n", Flags.NO_PERSIST | Flags.RED_DOT, Setting.STREAM, 60
        ),
        contract.SendMessage(SYSTEM_UID, "b", 1, b'{"a":1}'),
        contract.SendMessage(SYSTEM_UID, "", 8, b"hello", flags=Flags.SYNC_ONCE, subscribers=["x"]),
    ]


async def test_sends_are_checked_in_order_before_anything_is_asked(api: Api) -> None:
    for change, msg, code in (
        ({"payload": "!"}, "illegal base64 data at input byte 0", 2003),
        ({"payload": "", "channel_id": ""}, "payload不能为空！", 2003),
        ({"payload": base64.b64encode(b"x" * 32768).decode()}, "payload不能超过32767字节！", 2001),
        ({"channel_id": ""}, "无法处理发送消息请求！", 2003),
        ({"subscribers": ["b"]}, "无法处理发送消息请求！", 2003),
        ({"channel_id": "a@b"}, "频道ID不合法！", 3001),
        ({"channel_type": 0}, "频道类型错误！", 2003),
    ):
        assert await api.refused("/message/send", {**SEND, **change}) == (msg, code)
    fits = {**SEND, "payload": base64.b64encode(b"x" * 32767).decode()}
    assert (await api.post("/message/send", fits)).status_code == 200
    assert len(api.service.seen) == 1


async def test_strings_that_killed_the_reference_are_refused(api: Api) -> None:
    for name in ("client_msg_no", "channel_id", "from_uid"):
        msg, code = await api.refused("/message/send", {**SEND, name: "x" * 32768})
        assert (msg, code) == (f"MessageSend.{name}: expected at most 32767 bytes", 2003)
    members = {"channel_id": "g", "channel_type": 2, "subscribers": ["a", ""]}
    assert (await api.refused("/channel/subscriber_remove", members))[0] == "订阅者不能为空！"
    uids = {"channel_id": "g", "channel_type": 2, "uids": ["a", ""]}
    assert (await api.refused("/channel/blacklist_add", uids))[0] == "uids不能为空！"
    assert api.service.seen == []


async def test_blank_members_are_dropped_and_types_have_their_defaults(api: Api) -> None:
    await api.post("/channel", {"channel_id": "g", "channel_type": 2, "subscribers": ["a", ""]})
    await api.post("/channel/subscriber_add", {"channel_id": "g", "subscribers": ["", "b"]})
    await api.post("/channel/subscriber_remove", {"channel_id": "g", "subscribers": ["a"]})
    await api.post(
        "/channel/whitelist_add", {"channel_id": "g", "channel_type": 2, "uids": ["", "c"]}
    )
    await api.post("/channel/blacklist_add", {"channel_id": "g", "channel_type": 2, "uids": ["d"]})
    await api.post("/user/systemuids_add", {"uids": ["s", ""]})
    channel = api.service.channel("g", 2)
    assert channel.subscribers == {"b": 0}
    assert (channel.allowlist, channel.denylist) == ({"c"}, {"d"})
    assert api.service.system_uids == {"s"}


async def test_channel_records_are_overwritten_whole(api: Api) -> None:
    flags = {"large": 1, "ban": True, "disband": 1, "send_ban": 1, "allow_stranger": 1}
    await api.post("/channel", {"channel_id": "g", "channel_type": 2, **flags, "reset": 1})
    assert api.service.seen[-1] == contract.SetChannel(
        "g", 2, True, True, True, True, True, reset=True
    )
    await api.post("/channel/info", {"channel_id": "g", "channel_type": 2})
    assert api.service.seen[-1] == contract.SetChannel("g", 2)
    assert (await api.refused("/channel/info", {}))[0] == "频道ID不能为空！"


async def test_a_banned_user_gets_200_with_the_reason(api: Api) -> None:
    await api.post("/channel", {"channel_id": "u", "channel_type": 1, "ban": 1})
    response = await api.post("/user/token", {"uid": "u", "token": "t"})
    assert (response.status_code, response.json()) == (200, {"status": 19, "code": 3002})


async def test_history_shows_the_receiver_and_hides_the_system(api: Api) -> None:
    channel_id = person_channel_id("a", "b")
    record = contract.MessageRecord(
        7, 1, channel_id, 1, "a", "n", b"hello", Flags.RED_DOT, 128, 9, "topic", 1_700_000_000
    )
    senders = [("a", channel_id), ("b", channel_id), (SYSTEM_UID, f"u@{SYSTEM_UID}"), ("a", "a@a")]
    api.service.channel(channel_id, 1).messages = [
        contract.MessageRecord(*({**_fields(record), "from_uid": uid, "channel_id": cid}).values())
        for uid, cid in senders
    ]
    body = {"login_uid": "b", "channel_id": "a", "channel_type": 1}
    answer = (await api.post("/channel/messagesync", body)).json()
    messages = answer.pop("messages")
    assert answer == {"start_message_seq": 0, "end_message_seq": 0, "more": 0}
    shown = [(m["from_uid"], m["channel_id"]) for m in messages]
    assert shown == [("a", "b"), ("b", "a"), ("", SYSTEM_UID), ("a", "a@a")]
    assert messages[0] == {
        "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
        "setting": 128,
        "message_id": 7,
        "message_idstr": "7",
        "client_msg_no": "n",
        "message_seq": 1,
        "from_uid": "a",
        "channel_id": "b",
        "channel_type": 1,
        "topic": "topic",
        "expire": 9,
        "timestamp": 1_700_000_000,
        "payload": HELLO,
    }


def _fields(record: contract.MessageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


async def test_a_batch_names_who_failed_and_why(api: Api) -> None:
    uids = [f"u{n}" for n in range(600)]
    body = {"from_uid": "a", "subscribers": [*uids, "x@y", ""], "payload": HELLO}
    answer = (await api.post("/message/sendbatch", body)).json()
    assert answer == {"fail_uids": ["x@y"], "reason": ["频道ID不合法！"]}
    assert [r.channel_id for r in api.service.seen if isinstance(r, contract.SendMessage)] == uids
    chat = person_channel_id("a", "u1")
    api.service.channel(chat, 1).info = contract.SetChannel(chat, 1, ban=True)
    answer = (await api.post("/message/sendbatch", body)).json()
    assert answer["fail_uids"] == ["x@y", "u1"]
    assert answer["reason"][1] == "channel closed"


async def test_health_is_500_when_the_kernel_is_not_well(api: Api) -> None:
    api.service.health = contract.Health(ok=False, text="disk full")
    response = await api.client.get("/health")
    assert response.status_code == 500
    assert response.json() == {"status": "error", "message": "disk full"}


async def test_no_answer_in_time_is_5003_and_the_fate_unknown() -> None:
    service = FakeService()
    service.hold_sends = True
    async with (
        serve_api(service, answer_timeout_s=0.3) as served,
        httpx.AsyncClient(base_url=served.base, trust_env=False) as client,
    ):
        api = Api(served, service, client)
        msg, code = await api.refused("/message/send", {**SEND, "client_msg_no": "n"})
        assert (msg, code) == ("no answer from the kernel within 0.3 s", 5003)
        service.hold_sends = False
        service.release()
        repeat = (await api.post("/message/send", {**SEND, "client_msg_no": "n"})).json()
        assert repeat["data"]["message_seq"] == 1


class Failing(FakeService):
    async def handle(self, request: contract.Request, actor: contract.Actor) -> contract.Response:
        if isinstance(request, contract.AddSystemUids):
            return contract.Done() if request.uids else contract.Health(ok=True)
        kinds = list(contract.ErrorKind)
        assert isinstance(request, contract.SetUserToken)
        return contract.Error(kinds[request.device_flag], "why")


async def test_errors_of_the_kernel_are_400_with_their_number() -> None:
    service = Failing()
    async with (
        serve_api(service) as served,
        httpx.AsyncClient(base_url=served.base, trust_env=False) as client,
    ):
        api = Api(served, service, client)
        codes = [
            await api.refused("/user/token", {"uid": "u", "token": "t", "device_flag": flag})
            for flag in range(len(contract.ErrorKind))
        ]
        assert codes == [("why", 2003), ("why", 5002), ("why", 3001), ("why", 3003), ("why", 5002)]
        text, code = await api.refused("/user/systemuids_add", {"uids": []})
        assert (text, code) == ("unexpected answer Health from the kernel", 5002)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"payload":' * 20_000,
        b'{"payload":' + b'{"a":' * 990 + b"1" + b"}" * 990 + b"}",
        b'{"expire":' + b"9" * 200_000 + b"}",
        b'{"expire":1e' + b"9" * 100_000 + b"}",
        b'{"channel_type":NaN}',
        b'{"channel_id":"\\ud800","channel_type":2,"payload":{"\\udfff":"\\ud800"}}',
        b'{"channel_id":"\xff\xfe","channel_type":2,"payload":"aGk="}',
        b'{"from_uid":"\\u0000","channel_id":"\\u0000","channel_type":2,"payload":"aGk="}',
        b"\x00" * 1000,
        b'"' + b"\\" * 99_999,
    ],
)
async def test_hostile_bodies_do_no_harm(api: Api, body: bytes) -> None:
    response = await api.post("/message/send", body)
    assert response.status_code in (200, 400), response.text
    assert await api.healthy()
    for request in api.service.seen:
        if isinstance(request, contract.SendMessage):
            request.channel_id.encode()
            request.payload.decode()


async def test_bodies_over_the_limit_are_refused_and_the_connection_closed(api: Api) -> None:
    response = await api.post("/message/send", b" " * (256 * 1024 + 1))
    assert response.status_code == 400
    assert response.json()["code"] == 2001
    assert response.headers["connection"] == "close"

    head = b"POST /message/send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = head + b"10000\r\n%b\r\n" % (b" " * 65536) * 200
    answer = await _raw(api, endless)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert await api.healthy()


async def _raw(api: Api, data: bytes) -> bytes:
    """What the server answers to these bytes until it closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", api.served.worker.port)
    answer = b""
    async with stream:
        try:
            await stream.send_all(data)
            with trio.fail_after(5):
                async for part in stream:
                    answer += part
        except trio.BrokenResourceError:
            pass
    return answer


async def test_endless_or_broken_request_heads_are_refused(api: Api) -> None:
    start = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    for data in (
        start + b"A: " + b"x" * 2_000_000,
        start + b"A: x\r\n" * 200_000,
        b"GET /" + b"x" * 2_000_000,
    ):
        answer = await _raw(api, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert (await _raw(api, b"\x16\x03\x01 no http\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert await api.healthy()


async def test_pipelined_requests_are_answered_in_order(api: Api) -> None:
    paths = [b"/health", b"/nowhere", b"/docs/health"]
    data = b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await _raw(api, data + last)
    starts = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert starts == [b"200", b"404", b"200", b"200"]


async def test_the_docs_are_whole_and_load_nothing_from_elsewhere(api: Api) -> None:
    assert (await api.client.get("/swagger")).headers["location"] == "/docs"
    page = (await api.client.get("/docs")).text
    assert "http" not in page
    for path in ("/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/favicon-32x32.png"):
        assert path in page
        assert len((await api.client.get(path)).content) > 500
    document = (await api.client.get("/docs/openapi.json")).json()
    assert document["paths"].keys() >= {"/health", "/message/send", "/channel/max_message_seq"}
    text = json.dumps(document)
    for name in set(_references(document)):
        assert name in document["components"]["schemas"], text
    subscribers = document["components"]["schemas"]["Channel"]["properties"]["subscribers"]
    assert {"type": "string"} in subscribers["items"]["oneOf"]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        return own + [name for item in value.values() for name in _references(item)]
    if isinstance(value, list):
        return [name for item in value for name in _references(item)]
    return []


async def test_in_release_mode_only_the_docs_health_shows() -> None:
    async with (
        serve_api(mode="release") as served,
        httpx.AsyncClient(base_url=served.base, trust_env=False) as client,
    ):
        for path in ("/docs", "/docs/openapi.json"):
            response = await client.get(path)
            assert response.status_code == 403
            assert response.json().keys() == {"error", "message", "mode", "suggestion"}
        assert (await client.get("/docs/health")).status_code == 200
        assert (await client.get("/docs/swagger-ui.css")).status_code == 404
