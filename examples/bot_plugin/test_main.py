import json
from pathlib import Path

import pytest

from plugin_sdk import NotPermittedError
from plugin_sdk.serve import load_plugin
from plugin_sdk.testing import HandlerFailedError, SyncPluginTest

EchoBot = load_plugin(Path(__file__).parent, "main.py")


def text(content: str) -> bytes:
    return json.dumps({"type": 1, "content": content}).encode()


def test_the_bot_answers_whoever_writes_to_it() -> None:
    with SyncPluginTest(EchoBot, config={"greeting": "> "}) as t:
        t.receive(text("hi"), uids=["echo-bot"], from_uid="u1", message_id=7, lineage=b"proof")
    (sent,) = t.host.sent
    assert (sent.channel_id, sent.channel_type, sent.from_uid) == ("u1", 1, "echo-bot")
    assert json.loads(sent.payload) == {"type": 1, "content": "> hi"}
    assert (sent.client_msg_no, sent.lineage) == ("echo-7", b"proof")


def test_the_bot_is_silent_to_itself_to_others_and_to_what_is_no_text() -> None:
    with SyncPluginTest(EchoBot) as t:
        t.receive(text("hi"), uids=["echo-bot"], from_uid="echo-bot")
        t.receive(text("hi"), uids=["u3"], from_uid="u1")
        t.receive(b"\x00", uids=["echo-bot"], from_uid="u1")
    assert t.host.sent == []


def test_a_missing_grant_is_an_error_of_the_call() -> None:
    with SyncPluginTest(EchoBot) as t:
        t.host.errors["SendMessage"] = NotPermittedError("send_as: echo-bot")
        with pytest.raises(HandlerFailedError, match="NotPermittedError: send_as: echo-bot"):
            t.receive(text("hi"), uids=["echo-bot"], from_uid="u1")
