"""The hooks: one function per hook whose signature and docstring say what a handler gets and may
return. A handler is the method of the same name, marked with `@hook`, sync or async."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plugin_sdk.types import (
    ChannelAnswer,
    ChannelQuery,
    Continue,
    Event,
    Message,
    Refuse,
    Replace,
    UserAnswer,
    UserQuery,
    Verdict,
    Veto,
    WebhookAnswer,
)


def send(message: Message) -> Verdict | None:
    """A message is about to be accepted: after the permission check, before it is stored.

    Return None or Continue() to go on, Replace(payload) to go on with another payload, or
    Refuse(code, text). With `@hook(batch=True)` the handler gets a sequence of messages and
    returns one of these for each, in the same order.
    """


def persist_after(messages: Sequence[Message]) -> None:
    """Messages are durable, in commit order. Return None when all are processed.

    After a crash the same messages come again: at least once, in order.
    """


def channel_get(query: ChannelQuery) -> ChannelAnswer | Continue | None:
    """The kernel needs a channel's record. Return None for its own, or a ChannelAnswer."""


def user_get(query: UserQuery) -> UserAnswer | Refuse | Continue | None:
    """The kernel needs a user's record. Return None for its own, or a UserAnswer.

    When `query.login` is set, Refuse(code) refuses the login: the client will not try again.
    """


def receive(message: Message, uids: Sequence[str]) -> None:
    """A stored message has recipients that are offline, or bound to this plugin. Return None.

    Answer people with `await self.host.send_message(...)`.
    """


def webhook(event: Event) -> WebhookAnswer | Continue | None:
    """An event is about to leave. Return None to let it go, or WebhookAnswer.change(data),
    WebhookAnswer.drop() or WebhookAnswer.delivered()."""


def config_update(config: Any) -> Veto | None:
    """A new configuration is proposed; `config` is it, already checked against the schema.

    Return None to accept: calls issued later see it as `self.config`. Veto(text) keeps the old.
    """


def health() -> Veto | None:
    """Return None when healthy, else Veto(text)."""


def stop(reason: str) -> None:
    """All calls are answered and no other follows: clean up. `reason` is "reload", "disable",
    "uninstall" or "shutdown"."""


def start() -> None:
    """The plugin is connected and configured, and gets no call before this returns. An exception
    ends the process. It is not called by the host: it has no policy and no budget."""


def secrets_update(names: Sequence[str]) -> None:
    """Secrets were changed by the operator: `self.secrets` holds the new values already. `names`
    are those that changed. Without this hook the new values are used wherever they are read next.
    """


@dataclass(frozen=True, slots=True)
class HookSpec:
    """One hook: how many arguments its handler takes, which answers it may give, its batch form."""

    name: str
    doc: Callable[..., Any]
    arguments: int
    answers: tuple[type, ...]
    may_batch: bool = False
    on_wire: bool = True

    @property
    def allowed(self) -> str:
        return ", ".join(["None", *(answer.__name__ for answer in self.answers)])


SPECS: dict[str, HookSpec] = {
    spec.name: spec
    for spec in (
        HookSpec("send", send, 1, (Continue, Replace, Refuse), may_batch=True),
        HookSpec("persist_after", persist_after, 1, ()),
        HookSpec("channel_get", channel_get, 1, (Continue, ChannelAnswer)),
        HookSpec("user_get", user_get, 1, (Continue, UserAnswer, Refuse)),
        HookSpec("receive", receive, 2, ()),
        HookSpec("webhook", webhook, 1, (Continue, WebhookAnswer)),
        HookSpec("config_update", config_update, 1, (Veto,)),
        HookSpec("health", health, 0, (Veto,)),
        HookSpec("stop", stop, 1, ()),
        HookSpec("start", start, 0, (), on_wire=False),
        HookSpec("secrets_update", secrets_update, 1, (), on_wire=False),
    )
}
