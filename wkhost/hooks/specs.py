"""The one list of extension points: what plugin processes are asked, what parts of the host hear.

`PLUGIN_HOOKS` are the decision points open to plugin processes (see proto/ for their calls).
`HostSpecs` are in-process events; parts such as the plugin host, metrics and webhooks register
with the pluggy manager and hear them in registration order. Each is called per batch, from the
trio thread, and must return within microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pluggy

from wkhost.hooks.verdict import Policy
from wkhost.types import Message

PROJECT = "wkhost"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class PluginHook(msgspec.Struct, frozen=True):
    """One decision point: its default policy (None where silence decides nothing)."""

    name: str
    sentence: str
    default_policy: Policy | None


PLUGIN_HOOKS = {
    hook.name: hook
    for hook in (
        PluginHook("send", "A message was admitted and is about to be stored.", Policy.CLOSED),
        PluginHook("channel_get", "The kernel needs a channel's record.", Policy.OPEN),
        PluginHook("user_get", "The kernel needs a user's record, logins included.", Policy.OPEN),
        PluginHook("persist_after", "Messages are durable; at least once, in order.", None),
        PluginHook("receive", "A stored message has recipients that are offline.", None),
        PluginHook("webhook", "An event is about to leave.", Policy.OPEN),
        PluginHook("config_update", "A new configuration is proposed; may be refused.", None),
        PluginHook("health", "The host asks how the plugin is.", None),
        PluginHook("stop", "The process is to end.", None),
    )
}
"""By name. `user_get` for a login has the default policy closed; see the dispatcher."""


class HostSpecs:
    """In-process events."""

    @hookspec
    def messages_stored(self, messages: Sequence[Message]) -> None:
        """Messages have become durable, in commit order."""

    @hookspec
    def session_opened(self, uid: str, conn_id: int) -> None:
        """A login succeeded."""

    @hookspec
    def session_closed(self, uid: str, conn_id: int) -> None:
        """A logged-in connection is gone."""


def host_hooks() -> pluggy.PluginManager:
    """Return a manager that knows `HostSpecs`, with nothing registered."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HostSpecs)
    return manager
