"""The JSON-RPC form: examples, correlation, errors, hostile input."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.protocol_pair import NOW_MS, logged_in, make_server
from tests.unit.protocol.test_protocol_vectors import VECTORS
from wkhost.errors import LocalProtocolError, ReasonCode, Refused, RemoteProtocolError
from wkhost.protocol.connection import Form, ServerConnection, State
from wkhost.protocol.packets import (
    Connect,
    Disconnect,
    Event,
    Packet,
    Ping,
    Recv,
    Recvack,
    Send,
    Sendack,
    Sub,
    Suback,
)
from wkhost.protocol.recv_frames import RecvFrames

EXAMPLES: dict[str, dict[str, Any]] = {e["name"]: e for e in VECTORS["jsonrpc"]}
HELLO = "eyJ0eXBlIjoxLCJjb250ZW50IjoiaGVsbG8ifQ=="
MESSAGE_ID = 1934567890123456789


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def open_connection() -> ServerConnection:
    server, _ = logged_in(Form.JSONRPC)
    return server


def receive(server: ServerConnection, value: object) -> Packet:
    (packet,) = server.receive(text(value))
    return packet


def test_connect_example() -> None:
    example = EXAMPLES["connect"]
    server = make_server()
    stamp = example["c2s"]["params"]["clientTimestamp"]
    assert receive(server, example["c2s"]) == Connect(5, 1, "web_1", "u1", "tok-u1", stamp)
    assert json.loads(server.accept(stamp + 37)) == example["s2c"]


def test_refused_connect_example() -> None:
    example = EXAMPLES["connect_refused"]
    server = make_server()
    receive(server, example["c2s"])
    error = example["s2c"]["error"]
    assert json.loads(server.refuse(error["code"], error["message"])) == example["s2c"]


def test_a_refusal_without_a_text_names_the_reason() -> None:
    server = make_server()
    receive(server, EXAMPLES["connect_refused"]["c2s"])
    assert json.loads(server.refuse(19))["error"] == {"code": 19, "message": "ban"}


@pytest.mark.parametrize(
    ("name", "fate"),
    [("send", (MESSAGE_ID, 1, 1)), ("send_refused", (MESSAGE_ID + 1, 0, 3))],
)
def test_send_examples(name: str, fate: tuple[int, int, int]) -> None:
    example = EXAMPLES[name]
    params = example["c2s"]["params"]
    server = open_connection()
    send = receive(server, example["c2s"])
    payload = b'{"type":1,"content":"hello"}'
    assert send == Send(
        1, params["clientMsgNo"], params["channelId"], params["channelType"], payload, 2
    )
    assert json.loads(server.sendack(Sendack(1, *fate, flags=2))) == example["s2c"]


def test_a_refused_send_is_a_result_with_its_text() -> None:
    server = open_connection()
    receive(server, EXAMPLES["send"]["c2s"])
    answer = json.loads(server.sendack(Sendack(1, 5, 0, 11, text="no links, please")))
    assert "error" not in answer
    assert answer["result"]["reason"] == "no links, please"
    assert answer["result"]["reasonCode"] == 11


def test_recv_example() -> None:
    recv = Recv(MESSAGE_ID, 1, 1700000001, "u1", "u1", 1, "c-1", b'{"type":1,"content":"hello"}', 2)
    server = open_connection()
    assert json.loads(server.recv_frame(RecvFrames(recv))) == EXAMPLES["recv"]["s2c"]


def test_recv_always_has_a_header_and_only_the_optional_fields_that_are_set() -> None:
    recv = Recv(1, 2, 3, "u", "g", 2, "", b"", 0, 0x8A, 60, "news")
    params = json.loads(RecvFrames(recv).jsonrpc)["params"]
    assert params["header"] == {}
    assert params["setting"] == {"receipt": True, "stream": True, "topic": True}
    assert (params["expire"], params["topic"]) == (60, "news")
    assert not {"streamNo", "streamId", "streamFlag"} & params.keys()
    bare = json.loads(RecvFrames(Recv(1, 2, 3, "u", "g", 2, "", b"")).jsonrpc)["params"]
    assert not {"setting", "expire", "topic"} & bare.keys()


def test_recvack_ping_disconnect_and_event_examples() -> None:
    server = open_connection()
    assert receive(server, EXAMPLES["recvack"]["c2s"]) == Recvack(MESSAGE_ID, 1, 2)
    assert receive(server, EXAMPLES["ping"]["c2s"]) == Ping()
    assert json.loads(server.pong()) == EXAMPLES["ping"]["s2c"]
    disconnect = EXAMPLES["disconnect"]["s2c"]
    assert json.loads(server.disconnect(12, "login in other device")) == disconnect
    event = Event("evt-1", "stream.delta", 1700000002123, b'{"client_msg_no":"c1"}')
    assert json.loads(server.event(event)) == EXAMPLES["event"]["s2c"]


def test_notifications_have_no_id_key() -> None:
    server = open_connection()
    recv = Recv(1, 2, 3, "u", "g", 2, "", b"")
    for frame in (
        server.recv_frame(RecvFrames(recv)),
        server.disconnect(12),
        server.event(Event("e", "t", 1, b"{}")),
    ):
        assert "id" not in json.loads(frame)


@pytest.mark.parametrize("id_text", ['"a\\u00e9\\"b"', "7", "-1.50", '""'])
def test_ids_are_echoed_as_they_came(id_text: str) -> None:
    server = open_connection()
    assert server.receive(f'{{"method":"ping","params":null,"id":{id_text}}}'.encode()) == [Ping()]
    assert server.pong() == f'{{"jsonrpc":"2.0","id":{id_text},"result":{{}}}}'.encode()


def test_answers_find_their_requests_in_any_order() -> None:
    server = open_connection()
    params = {"channelId": "g1", "channelType": 2, "payload": HELLO}
    batch = b"\n".join(text({"id": f"r{i}", "method": "send", "params": params}) for i in range(5))
    sends = server.receive(batch)
    assert len({s.client_msg_no for s in sends if isinstance(s, Send)}) == 5
    for i in (3, 0, 4, 1, 2):
        send = sends[i]
        assert isinstance(send, Send)
        assert len(send.client_msg_no) == 33
        assert send.client_msg_no.endswith("0")
        answer = json.loads(server.sendack(Sendack(send.client_seq, 9, i, 1)))
        assert (answer["id"], answer["result"]["messageSeq"]) == (f"r{i}", i)
        with pytest.raises(LocalProtocolError):
            server.sendack(Sendack(send.client_seq, 9, i, 1))


def test_requests_without_an_id_are_served_without_an_answer() -> None:
    server = open_connection()
    assert receive(server, {"method": "ping"}) == Ping()
    assert server.pong() == b""
    send = {
        "method": "send",
        "id": None,
        "params": {"channelId": "c", "channelType": 1, "payload": ""},
    }
    packet = receive(server, send)
    assert isinstance(packet, Send)
    assert server.sendack(Sendack(packet.client_seq, 1, 1, 1)) == b""


def test_an_answer_that_nothing_waits_for_is_our_own_fault() -> None:
    server = open_connection()
    for call in (server.pong, lambda: server.suback(Suback("", "c", 1, 0, 1))):
        with pytest.raises(LocalProtocolError):
            call()


def test_subscribe_and_unsubscribe() -> None:
    server = open_connection()
    for action, method in enumerate(("subscribe", "unsubscribe")):
        params = {"subNo": "s", "channelId": "d1", "channelType": 7, "param": "p"}
        packet = receive(server, {"method": method, "id": "x", "params": params})
        assert packet == Sub("s", "d1", 7, action, "p")
        result = json.loads(server.suback(Suback("s", "d1", 7, action, 1)))["result"]
        assert result["action"] == action
        assert result["reasonCode"] == 1


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (HELLO, b'{"type":1,"content":"hello"}'),
        ("", b""),
        ({"type": 1, "text": "你 好"}, '{"type":1,"text":"你 好"}'.encode()),
        ([1, {"a": None}], b'[1,{"a":null}]'),
    ],
)
def test_payload_is_base64_or_becomes_compact_json(payload: object, expected: bytes) -> None:
    params = {"channelId": "c", "channelType": 1, "payload": payload}
    packet = receive(open_connection(), {"method": "send", "id": "1", "params": params})
    assert isinstance(packet, Send)
    assert packet.payload == expected


@pytest.mark.parametrize(
    ("request_object", "code"),
    [
        ({"method": "nope"}, -32601),
        ({"method": 5}, -32600),
        ({}, -32600),
        ({"method": "ping", "jsonrpc": "1.0"}, -32600),
        ({"method": "send"}, -32602),
        ({"method": "send", "params": []}, -32602),
        ({"method": "send", "params": {"channelType": 1, "payload": ""}}, -32602),
        (
            {"method": "send", "params": {"channelId": "c", "channelType": 256, "payload": ""}},
            -32602,
        ),
        ({"method": "send", "params": {"channelId": "c", "channelType": 1, "payload": 5}}, -32602),
        (
            {"method": "send", "params": {"channelId": "c", "channelType": 1, "payload": "?"}},
            -32602,
        ),
        (
            {
                "method": "send",
                "params": {"channelId": "x" * 32768, "channelType": 1, "payload": ""},
            },
            -32602,
        ),
        ({"method": "recvack", "params": {"messageId": "12a", "messageSeq": 1}}, -32602),
        ({"method": "recvack", "params": {"messageId": "9" * 19, "messageSeq": 1}}, -32602),
        ({"method": "recvack", "params": {"messageId": "1", "messageSeq": -1}}, -32602),
    ],
)
def test_a_bad_request_is_answered_and_the_connection_goes_on(
    request_object: dict[str, Any], code: int
) -> None:
    server = open_connection()
    assert server.receive(text(request_object | {"id": "q"}) + b'{"method":"ping"}') == [Ping()]
    (reply,) = server.take_replies()
    answer = json.loads(reply)
    assert (answer["id"], answer["error"]["code"]) == ("q", code)
    assert server.take_replies() == []
    assert server.state is State.OPEN


def test_a_bad_notification_is_not_answered() -> None:
    server = open_connection()
    assert server.receive(b'{"method":"nope"}{"method":"recvack","params":{}}') == []
    assert server.take_replies() == []


HOSTILE = [
    b"[1]",
    b"\x10\x00",
    b'{"a":' * 100_000,
    b'{"method":"ping","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"method":"ping","id":' + b"9" * 5000 + b"}",
    b'{"method":"ping","id":1e999}',
    b'{"method":"ping","id":true}',
    b'{"method":"ping","id":{}}',
    b'{"method":"\xff"}',
    b'{"method":"\\ud800"}',
    b'{"method":"ping","id":"\\ud800"}',
    b'{"\xff":1}',
    b'{"method":"ping",}',
    b"{]}",
    b"{{}}",
    b"{}",
    b'{"a":"x\ny"}',
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_undecodable_input_ends_the_connection_with_a_parse_error(data: bytes) -> None:
    server = open_connection()
    with pytest.raises(RemoteProtocolError):
        server.receive(b'{"method":"ping"}' + data)
    assert server.take() == [Ping()]
    (reply,) = server.take_replies()
    assert json.loads(reply)["error"]["code"] == -32700
    assert server.state is State.CLOSED


@pytest.mark.parametrize(
    "params",
    [
        b'{"channelId":"c","channelType":1,"payload":"","expire":1e999}',
        b'{"channelId":"c","channelType":' + b"9" * 5000 + b',"payload":""}',
        b'{"channelId":"c","channelType":1,"payload":{"a":' + b"9" * 5000 + b"}}",
        b'{"channelId":"c","channelType":1,"payload":{"a":1e999}}',
    ],
)
def test_huge_numbers_in_params_are_a_bad_request(params: bytes) -> None:
    server = open_connection()
    assert server.receive(b'{"id":"1","method":"send","params":' + params + b"}") == []
    (reply,) = server.take_replies()
    assert json.loads(reply)["error"]["code"] == -32602


def test_of_duplicate_keys_the_last_one_counts() -> None:
    assert open_connection().receive(b'{"method":"nope","method":"ping"}') == [Ping()]


def test_an_object_above_the_limit_is_refused_before_it_is_complete() -> None:
    server, _ = logged_in(Form.JSONRPC, max_frame_bytes=1000)
    assert server.receive(b'{"method":"ping","x":"' + b"a" * 900) == []
    with pytest.raises(RemoteProtocolError):
        server.receive(b"a" * 100)


@pytest.mark.parametrize(
    "first",
    [
        {"method": "ping", "id": "1"},
        {"method": "connect", "params": {"uid": "u"}},
        {"method": "connect", "id": "1"},
        {"method": "connect", "id": "1", "params": {"uid": "a@b"}},
        {"id": "1"},
    ],
)
def test_a_bad_first_request_closes_without_an_answer(first: object) -> None:
    server = make_server()
    with pytest.raises(RemoteProtocolError):
        server.receive(text(first))
    assert server.take_replies() == []


def test_the_systems_own_names_are_refused() -> None:
    server = make_server()
    with pytest.raises(Refused) as caught:
        server.receive(text({"method": "connect", "id": "1", "params": {"uid": "____system"}}))
    assert caught.value.reason_code == ReasonCode.AUTH_FAIL
    assert json.loads(server.refuse(2))["error"]["code"] == 2


def test_a_stated_version_gates_events_and_zero_means_the_latest() -> None:
    for version, has_events in ((0, True), (4, False), (9, True)):
        server = make_server()
        connect = {"uid": "u", "version": version}
        server.receive(b" \r\n\t" + text({"method": "connect", "id": "1", "params": connect}))
        server.accept(NOW_MS)
        assert bool(server.event(Event("e", "t", 1, b"{}"))) is has_events


@pytest.mark.parametrize(
    "event", [Event("", "t", 1, b""), Event("e", "", 1, b""), Event("e", "t", 1, b"\xff")]
)
def test_events_that_end_a_client_are_our_own_fault(event: Event) -> None:
    with pytest.raises(LocalProtocolError):
        open_connection().event(event)


def test_nothing_behind_disconnect_is_read() -> None:
    server = open_connection()
    data = text({"method": "disconnect", "params": {"reason": "bye"}}) + b'{"method":"ping"}'
    assert server.receive(data) == [Disconnect(0, "bye")]
    assert server.receive(b'{"method":"ping"}') == []
