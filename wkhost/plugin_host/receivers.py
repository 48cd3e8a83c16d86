"""`receive`: a plugin hears of stored messages whose recipients are offline, or bound to it.

Driven by an observer, so nothing is missed over a crash. One call per message and plugin, with the
list of the recipients that concern it; a message without such recipients costs no call. Commands
(messages of a command twin) are not for people, so nobody is offline for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wkhost.plugin_host.predicates import compile_globs
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.types import CMD_SUFFIX, Message

CALLS_AT_ONCE = 64
UIDS_PER_CALL = 4096
"""A call carries at most so many uids; a larger group takes several calls."""


class Recipients(Protocol):
    """What the kernel knows of a message's recipients; the sender is left out."""

    async def recipients(self, message: Message) -> list[str]: ...

    async def offline_recipients(self, message: Message) -> list[str]: ...


class Receivers:
    """Hands batches of messages to the `receive` hook of one plugin.

    `bound` are globs of the uids that the plugin answers for: with any, it hears of messages to
    these uids and no others, connected or not.
    """

    def __init__(self, proxy: PluginProxy, recipients: Recipients, bound: Sequence[str]) -> None:
        self._proxy = proxy
        self._recipients = recipients
        self._has_bound = bool(bound)
        self._is_bound = compile_globs(bound)

    async def hand_over(self, messages: Sequence[Message]) -> None:
        """Return when the plugin has answered for every message.

        Raises PluginError when it failed for any; all of them come again then.
        """
        items: list[tuple[Message, list[str]]] = []
        for message in messages:
            if message.channel_id.endswith(CMD_SUFFIX):
                continue
            uids = await self._concerned(message)
            items.extend(
                (message, uids[first : first + UIDS_PER_CALL])
                for first in range(0, len(uids), UIDS_PER_CALL)
            )
        for first in range(0, len(items), CALLS_AT_ONCE):
            await self._proxy.receive_all(items[first : first + CALLS_AT_ONCE])

    async def _concerned(self, message: Message) -> list[str]:
        if not self._has_bound:
            return await self._recipients.offline_recipients(message)
        uids = await self._recipients.recipients(message)
        is_bound = self._is_bound
        return uids if is_bound is None else [uid for uid in uids if is_bound(uid)]
