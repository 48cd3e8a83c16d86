"""Everything that may be asked of a running kernel, whichever door the question came through.

The link (HTTP workers, CLI) and the plugin host ask here; requests and answers are the structs of
`wkhost.link.contract`. Errors become `Error` answers in one place, `handle`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, get_args
from uuid import uuid4

import structlog
import trio

from wkhost.addressing import canonical_id
from wkhost.errors import StoreError, WkhostError
from wkhost.hooks.journal import Heard
from wkhost.kernel.directory import Directory
from wkhost.kernel.doors import Doors
from wkhost.kernel.explain import explain
from wkhost.kernel.history import sync_messages
from wkhost.kernel.replies import Replies
from wkhost.link import contract as c
from wkhost.store.store import Store
from wkhost.types import Message

log = structlog.get_logger(__name__)

_LISTING = (c.ListPlugins, c.GetPlugin, c.GetPluginOrder)
_OPERATOR_ONLY = (*(set(get_args(c.PluginRequest)) - set(_LISTING)), c.ExplainMessage)
_NEWEST = (1 << 64) - 1


class PluginManager(Protocol):
    """What the plugin host answers; wired in by the composition root."""

    async def handle(self, request: c.PluginRequest, actor: c.Actor) -> c.Response:
        """Answer, and record what changes something. Raises WkhostError."""

    def statistics(self) -> dict[str, Any]: ...

    def observations(self, message: Message) -> Sequence[c.PluginObservation]:
        """Return which observing hooks a stored message concerns, and whether they passed it."""


class Service:
    """Answers requests. `statistics` gives the counters of every part."""

    def __init__(
        self,
        *,
        store: Store,
        doors: Doors,
        replies: Replies,
        directory: Directory,
        healthy: Callable[[], str],
        statistics: Callable[[], dict[str, Any]],
        heard_of: Callable[[int], Sequence[Heard]],
        wall_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._doors = doors
        self._replies = replies
        self._directory = directory
        self._healthy = healthy
        self._statistics = statistics
        self._heard_of = heard_of
        self._wall_s = wall_s
        self.metrics: Callable[[], Awaitable[c.Metrics]] | None = None
        """Gathers the samples of all parts; wired in by the composition root."""
        self.plugins: PluginManager | None = None
        self._handlers: dict[type, Callable[[Any], Awaitable[c.Response]]] = {
            c.SendMessage: self.send,
            c.SyncMessages: self._sync_messages,
            c.GetMaxMessageSeq: self._max_message_seq,
            c.SetUserToken: directory.set_user_token,
            c.AddSystemUids: _done(directory.add_system_uids),
            c.SetChannel: _done(directory.set_channel),
            c.AddSubscribers: _done(directory.add_subscribers),
            c.RemoveSubscribers: _done(directory.remove_subscribers),
            c.AddToDenylist: _done(directory.add_to_denylist),
            c.AddToAllowlist: _done(directory.add_to_allowlist),
            c.GetHealth: self._health,
            c.GetStatistics: self._get_statistics,
            c.GetMetrics: self._get_metrics,
            c.ExplainMessage: self._explain,
        }

    async def handle(self, request: c.Request, actor: c.Actor) -> c.Response:
        """Answer one request. Never raises but for cancellation."""
        if actor.role != c.OPERATOR and isinstance(request, _OPERATOR_ONLY):
            return c.Error(c.ErrorKind.FORBIDDEN, f"{type(request).__name__}: operators only")
        try:
            if isinstance(request, c.PluginRequest):
                return await self._plugins.handle(request, actor)
            return await self._handlers[type(request)](request)
        except StoreError as error:
            return c.Error(c.ErrorKind.UNAVAILABLE, str(error))
        except WkhostError as error:
            return c.Error(c.ErrorKind.INVALID, str(error))
        except Exception:
            log.exception("request_failed", request=type(request).__name__)
            return c.Error(c.ErrorKind.INTERNAL, "the server failed to answer; see its log")

    # --- messages -------------------------------------------------------------------------------

    def send_nowait(
        self,
        request: c.SendMessage,
        done: Callable[[c.Sent], None],
        *,
        door: str = "http",
        hop: int = 0,
    ) -> None:
        """Send through the whole chain; `done` is called once the fate is known, maybe at once."""
        if not request.client_msg_no:
            request.client_msg_no = uuid4().hex + "0"
        client_msg_no = request.client_msg_no

        def answered(message_id: int, message_seq: int, reason_code: int, text: str) -> None:
            done(c.Sent(message_id, message_seq, client_msg_no, reason_code, text))

        self._doors.request(request, door=door, done=answered, hop=hop)
        self._replies.queue()

    async def send(self, request: c.SendMessage, *, door: str = "http", hop: int = 0) -> c.Sent:
        """Send through the whole chain and wait for the fate of the message.

        Cancellation: the message goes on.
        """
        event = trio.Event()
        result: list[c.Sent] = []

        def done(sent: c.Sent) -> None:
            result.append(sent)
            event.set()

        self.send_nowait(request, done, door=door, hop=hop)
        await event.wait()
        return result[0]

    async def _sync_messages(self, request: c.SyncMessages) -> c.MessagePage:
        return await sync_messages(self._store, request)

    async def _max_message_seq(self, request: c.GetMaxMessageSeq) -> c.MaxMessageSeq:
        channel_id = request.channel_id
        if request.login_uid:
            channel_id = canonical_id(request.login_uid, channel_id, request.channel_type)
        newest = self._store.read_messages(
            channel_id, request.channel_type, 1, _NEWEST, 1, newest_first=True
        )
        return c.MaxMessageSeq(newest[-1].message_seq if newest else 0)

    # --- server ---------------------------------------------------------------------------------

    async def _health(self, request: c.GetHealth) -> c.Health:
        problem = self._healthy()
        return c.Health(not problem, problem)

    async def _get_statistics(self, request: c.GetStatistics) -> c.Statistics:
        parts = self._statistics()
        if self.plugins is not None:
            parts["plugins"] = self.plugins.statistics()
        return c.Statistics(parts)

    async def _get_metrics(self, request: c.GetMetrics) -> c.Metrics:
        if self.metrics is None:
            raise WkhostError("metrics are not gathered")
        return await self.metrics()

    async def _explain(self, request: c.ExplainMessage) -> c.MessageTrail:
        plugins = self.plugins
        return explain(
            request.message_id,
            self._heard_of(request.message_id),
            self._store,
            (lambda message: []) if plugins is None else plugins.observations,
            now=trio.current_time(),
            wall_s=self._wall_s(),
        )

    # --- plugins --------------------------------------------------------------------------------

    @property
    def _plugins(self) -> PluginManager:
        if self.plugins is None:
            raise WkhostError("plugins are switched off (plugin.on is false)")
        return self.plugins


def _done(change: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[c.Response]]:
    async def handler(request: Any) -> c.Response:
        await change(request)
        return c.Done()

    return handler
