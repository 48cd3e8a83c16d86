"""The table of routes: method, path, what the body is, who answers. The API in one view."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from wkhost.api import channels, messages, monitor, schema, users
from wkhost.api.answers import Answer
from wkhost.api.go_json import BodyDecoder

RAW = "{}"
"""A body that cannot be decoded is answered with the decoder's text…"""
PREFIXED = "数据格式有误！: {}"
"""… or with the text behind these words …"""
FIXED = "数据格式有误！"
"""… or with these words alone. Source: HTTP API, Business API, "bad JSON"."""

Handler = Callable[..., Awaitable[Answer]]


class Route:
    """One route. `body` decodes the request's body, `query` its query string; at most one."""

    __slots__ = ("answers", "bad_json", "body", "handler", "method", "path", "query")

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        body: type[msgspec.Struct] | None = None,
        query: type[msgspec.Struct] | None = None,
        bad_json: str = RAW,
        answers: Any = schema.Status,
    ) -> None:
        self.method = method
        self.path = path
        self.handler = handler
        self.body = None if body is None else BodyDecoder(body)
        self.query = None if query is None else BodyDecoder(query)
        self.bad_json = bad_json
        self.answers = answers


def _post(path: str, handler: Handler, body: type[msgspec.Struct], **options: Any) -> Route:
    return Route("POST", path, handler, body=body, **options)


ROUTES = [
    Route("GET", "/health", monitor.health, answers=monitor.HealthAnswer),
    _post("/user/token", users.token, schema.UserToken),
    _post("/user/systemuids_add", users.system_uids_add, schema.SystemUids),
    _post("/channel", channels.create, schema.Channel, bad_json=PREFIXED),
    _post("/channel/info", channels.info, schema.ChannelInfo, bad_json=FIXED),
    _post(
        "/channel/subscriber_add",
        channels.subscriber_add,
        schema.SubscriberAdd,
        bad_json=PREFIXED,
    ),
    _post(
        "/channel/subscriber_remove",
        channels.subscriber_remove,
        schema.SubscriberRemove,
        bad_json=PREFIXED,
    ),
    _post("/channel/blacklist_add", channels.blacklist_add, schema.ChannelUids),
    _post("/channel/whitelist_add", channels.whitelist_add, schema.ChannelUids),
    _post("/message/send", messages.send, schema.MessageSend, answers=schema.SendAnswer),
    _post(
        "/message/sendbatch",
        messages.send_batch,
        schema.MessageSendBatch,
        answers=schema.SendBatchAnswer,
    ),
    _post(
        "/channel/messagesync",
        messages.sync,
        schema.ChannelMessageSync,
        answers=schema.MessagesResp,
    ),
    Route(
        "GET",
        "/channel/max_message_seq",
        messages.max_message_seq,
        query=schema.MaxMessageSeqQuery,
        answers=schema.MaxMessageSeqAnswer,
    ),
]
