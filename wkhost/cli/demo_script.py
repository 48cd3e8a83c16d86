"""What happens in `wkhost demo`: three clients, a group, a masked and a refused message.

Each step is an `Event`; how it looks is the business of `demo.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import trio

from wkhost.cli.demo_client import ChatClient
from wkhost.errors import ReasonCode, WkhostError
from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form
from wkhost.types import ChannelType

GROUP = "team"
UIDS = ("alice", "bob", "carol")
MODERATION_CONFIG: dict[str, Any] = {
    "lists": [
        {"name": "masked", "words": ["darn"], "action": "mask"},
        {
            "name": "refused",
            "words": ["casino"],
            "action": "refuse",
            "code": int(ReasonCode.NOT_ALLOW_SEND),
            "text": "no advertising here",
        },
    ]
}


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the transcript. `kind`: login, api, sent, refused, received or history."""

    kind: str
    uid: str = ""
    to: str = ""
    text: str = ""
    message_seq: int = 0
    reason_code: int = 0
    ack_ms: float = 0.0


Tell = Callable[[Event], None]


class Demo:
    """The running demo against a server's TCP and API addresses."""

    def __init__(self, tcp: tuple[str, int], api_url: str, tell: Tell) -> None:
        self._tcp = tcp
        self._api_url = api_url
        self._tell = tell
        self._clients: dict[str, ChatClient] = {}

    async def play(self) -> None:
        """Play all steps. Raises WkhostError or httpx.HTTPError when the server misbehaves."""
        async with AsyncExitStack() as stack:
            api = await stack.enter_async_context(httpx.AsyncClient(base_url=self._api_url))
            for uid in UIDS:
                client = await self._login(uid)
                stack.push_async_callback(client.close)
                self._clients[uid] = client
            await self._say("alice", "bob", ChannelType.PERSON, "Hello Bob!", ["bob"])
            await self._say(
                "bob", "alice", ChannelType.PERSON, "Hi, shall we make it a group?", ["alice"]
            )
            await self._make_group(api)
            await self._to_group("carol", "I am here too")
            await self._to_group("bob", "What a darn long day")
            await self._to_group("bob", "Come to the casino tonight")
            await self._to_group("alice", "Let us stay at home")
            await self._read_history(api)

    async def _login(self, uid: str) -> ChatClient:
        form = Form.JSONRPC if uid == "bob" else Form.BINARY
        client = await ChatClient.login(ClientConnection(uid, form=form), *self._tcp)
        self._tell(
            Event("login", uid, text="JSON-RPC" if form is Form.JSONRPC else "binary, encrypted")
        )
        return client

    async def _to_group(self, uid: str, text: str) -> None:
        others = [other for other in UIDS if other != uid]
        await self._say(uid, GROUP, ChannelType.GROUP, text, others)

    async def _say(
        self, uid: str, to: str, channel_type: ChannelType, text: str, readers: list[str]
    ) -> None:
        fate = await self._clients[uid].send_text(to, channel_type, text)
        ack = fate.sendack
        ack_ms = round(fate.seconds * 1000, 1)
        if ack.reason_code != ReasonCode.SUCCESS:
            self._tell(Event("sent", uid, to, text))
            self._tell(Event("refused", uid, to, ack.text, 0, ack.reason_code, ack_ms))
            return
        self._tell(Event("sent", uid, to, text, ack.message_seq, 0, ack_ms))
        for reader in readers:
            read = await self._clients[reader].receive_text()
            self._tell(Event("received", reader, to, read, ack.message_seq))

    async def _make_group(self, api: httpx.AsyncClient) -> None:
        group = {"channel_id": GROUP, "channel_type": ChannelType.GROUP, "subscribers": list(UIDS)}
        await _post(api, "/channel", group)
        self._tell(Event("api", to=GROUP, text=f"POST /channel: {', '.join(UIDS)} are in {GROUP}"))

    async def _read_history(self, api: httpx.AsyncClient) -> None:
        query = {
            "login_uid": "alice",
            "channel_id": GROUP,
            "channel_type": ChannelType.GROUP,
            "limit": 100,
        }
        answer = await _post(api, "/channel/messagesync", query)
        seqs = ", ".join(str(each["message_seq"]) for each in answer["messages"])
        self._tell(Event("history", "alice", GROUP, f"POST /channel/messagesync: {seqs}"))


async def _post(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await api.post(path, json=body)
    if answer.status_code != httpx.codes.OK:
        raise WkhostError(f"POST {path} answered {answer.status_code}: {answer.text[:200]}")
    return answer.json()


def play(tcp: tuple[str, int], api_url: str, tell: Tell, *, timeout_s: float) -> None:
    """Play the demo. Raises WkhostError when it does not come to its end."""

    async def bounded() -> None:
        with trio.fail_after(timeout_s):
            await Demo(tcp, api_url, tell).play()

    try:
        trio.run(bounded)
    except (httpx.HTTPError, OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise WkhostError(f"the demo broke off: {error or type(error).__name__}") from error
