"""The seam between the hook dispatcher and whoever answers: calls out, verdicts in.

A `Target` is one plugin. The dispatcher hands it calls and goes on; answers come back in batches
through `Answers`, in any order, exactly one per call, from the same (trio) thread. The bridge to
plugin processes implements `Target`; so does an in-process plugin in tests.

Theory of operation. A target keeps the call ids it was handed until it answers them. It answers
by itself when its plugin fails: `Failure(CRASH)` for every call of a plugin that died or broke the
protocol. It does not look at the clock: the dispatcher decides timeouts, forgets the call, and a
verdict that comes later is counted there and ignored. `submit_*` return False when the call would
exceed what may wait for this plugin (bytes or calls); the dispatcher turns that into OVERLOAD.
Times are seconds on the monotonic clock (`trio.current_time()`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from wkhost.hooks.records import HookLines
from wkhost.hooks.verdict import Failure, Verdict
from wkhost.types import Message


class SendOrigin(msgspec.Struct, frozen=True, gc=False):
    """Where a message came in. `door` is "client", "http" or a plugin's number."""

    door: str
    conn_id: int = 0
    device_id: str = ""
    device_flag: int = 0


class SendCall(msgspec.Struct, gc=False):
    """One `send` hook call. `deadline` is the end of the message's whole budget."""

    call_id: int
    message: Message
    origin: SendOrigin
    deadline: float


class ChannelGetCall(msgspec.Struct, gc=False):
    call_id: int
    channel_id: str
    channel_type: int
    deadline: float


class UserGetCall(msgspec.Struct, gc=False):
    """`login` is set when the call decides a login; `token` goes only to plugins granted it."""

    call_id: int
    uid: str
    device_flag: int
    deadline: float
    login: bool = False
    device_id: str = ""
    token: str = ""
    peer_host: str = ""


class ChannelAnswer(msgspec.Struct, frozen=True, gc=False):
    """Fields that are not None override the kernel's record for `ttl_s` seconds (0 = once)."""

    large: bool | None = None
    ban: bool | None = None
    disband: bool | None = None
    send_ban: bool | None = None
    allow_stranger: bool | None = None
    ttl_s: float = 0.0


class UserAnswer(msgspec.Struct, frozen=True, gc=False):
    """Fields that are not None override the kernel's record for `ttl_s` seconds (0 = once).

    `authenticated` decides a login without a token check.
    """

    token: str | None = None
    device_level: int | None = None
    ban: bool | None = None
    send_ban: bool | None = None
    authenticated: bool | None = None
    ttl_s: float = 0.0


class WebhookAnswer(msgspec.Struct, frozen=True, gc=False):
    """`action` is "change", "drop" or "delivered"; `data_json` is the event to send instead."""

    action: str
    data_json: bytes = b""


Answer = Verdict | ChannelAnswer | UserAnswer | WebhookAnswer


class Answers(Protocol):
    """Where a target delivers: the dispatcher."""

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        """Take answers as (call_id, answer). Unknown ids are late verdicts: counted, ignored."""

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        """Calls that are open go to another generation, whose `lines` their answers count for."""


class Target(Protocol):
    """One plugin, as the dispatcher sees it."""

    @property
    def no(self) -> str:
        """The plugin's number (its unique name)."""

    @property
    def ready(self) -> bool:
        """Some generation of it can take calls now. `hold` parks calls while this is False."""

    @property
    def lines(self) -> HookLines:
        """Breakers and counts, by hook, of the generation that is current (or was last)."""

    def check_health(self, budget_s: float, reply: Callable[[Answer], None]) -> bool:
        """Ask the plugin how it is; `reply` is called at most once. False: it takes no call."""

    def submit_send(self, call: SendCall) -> bool: ...

    def submit_channel_get(self, call: ChannelGetCall) -> bool: ...

    def submit_user_get(self, call: UserGetCall) -> bool: ...

    async def persist_after(self, messages: Sequence[Message]) -> None:
        """Let the plugin observe durable messages; returns when it has processed them all.

        Raises PluginError when it failed or died; the caller tries again.
        """

    async def receive(self, message: Message, uids: Sequence[str]) -> None:
        """Tell the plugin of a message whose recipients `uids` are offline or bound to it."""

    async def webhook(self, event: str, data_json: bytes) -> WebhookAnswer | Failure | None:
        """Offer an event that is about to leave. None: continue."""
