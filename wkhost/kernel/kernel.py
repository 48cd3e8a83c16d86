"""The kernel as one part: builds the stations of a message and runs their tasks.

It is what gateways feed (`Ingress`) and where the service, the dispatcher and the committer meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy
import trio

from wkhost.clock import Clock, MessageIds
from wkhost.delivery.boundary import ConnectRequest, Outbox
from wkhost.delivery.fanout import Fanout, recipients_of, with_visitor
from wkhost.delivery.members import Loading, MemberLists
from wkhost.delivery.presence import Presence
from wkhost.delivery.retry import Retries
from wkhost.hooks.chain import Chain
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.journal import Journal
from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer
from wkhost.kernel.channels import ChannelTable
from wkhost.kernel.connect import Logins
from wkhost.kernel.directory import Directory
from wkhost.kernel.doors import Doors
from wkhost.kernel.expiry import Expiry
from wkhost.kernel.inflight import Inflight
from wkhost.kernel.lookups import Lookups
from wkhost.kernel.permission import Permissions
from wkhost.kernel.replies import Replies
from wkhost.kernel.send import SendPath
from wkhost.kernel.sequence import Committer, Completion
from wkhost.kernel.service import Service
from wkhost.kernel.settings import KernelSettings
from wkhost.protocol.packets import Recvack, Send
from wkhost.store.store import Store
from wkhost.types import SYSTEM_UID, Flags, Message

_NO_PERSIST = int(Flags.NO_PERSIST)


class Kernel:
    """Implements `Ingress` for gateways and `Answers` for the plugin bridge."""

    def __init__(
        self,
        *,
        settings: KernelSettings,
        store: Store,
        outbox: Outbox,
        clock: Clock,
        node_id: int,
        events: pluggy.PluginManager,
    ) -> None:
        # Deadlines go to trio and to the plugin bridge, so they are on trio's clock.
        monotonic = trio.current_time
        self._events = events
        self._outbox = outbox
        self.store = store
        self.presence = Presence()
        self.members = MemberLists(store)
        self._channels = ChannelTable()
        system_uids: set[str] = set()
        self.system_uids: frozenset[str] | set[str] = system_uids
        permissions = Permissions(
            store, system_uids, whitelist_off_of_person=settings.whitelist_off_of_person
        )
        ids = MessageIds(node_id, store.message_id_ceiling(), clock.wall_ns)
        self._lookups = Lookups(store, permissions, monotonic, clock.wall_ms)
        self._fanout = Fanout(outbox, self.presence, self.members, monotonic, self._delivered)
        self._replies = Replies(outbox)
        self._send_path = SendPath(
            settings=settings,
            store=store,
            channels=self._channels,
            permissions=permissions,
            lookups=self._lookups,
            presence=self.presence,
            fanout=self._fanout,
            replies=self._replies,
            clock=monotonic,
        )
        self._doors = Doors(
            settings=settings,
            channels=self._channels,
            ids=ids,
            path=self._send_path,
            replies=self._replies,
        )
        self._dispatcher = Dispatcher(
            clock=monotonic,
            decided=self._send_path.decided,
            recheck=self._send_path.recheck,
            turn_done=self._replies.flush,
            budget_s=settings.plugin_timeout_s,
            max_payload_bytes=settings.max_payload_bytes,
            journal=Journal(settings.journal_messages),
        )
        self._completion = Completion(self._send_path.complete, self._replies.flush)
        self._committer = Committer(
            store,
            self._channels,
            ids,
            wall_s=clock.wall_s,
            durable=self._completion.put,
            failed=self._failed,
            stored=self._stored,
        )
        self._send_path.dispatcher = self._lookups.dispatcher = self._dispatcher
        self._send_path.committer = self._committer
        self._lookups.resume = self._send_path.looked_up
        self._logins = Logins(
            settings=settings,
            store=store,
            permissions=permissions,
            lookups=self._lookups,
            presence=self.presence,
            outbox=outbox,
            opened=self._opened,
            closed=self._closed,
        )
        self._directory = Directory(
            store=store,
            committer=self._committer,
            channels=self._channels,
            members=self.members,
            permissions=permissions,
            logins=self._logins,
            system_uids=system_uids,
        )
        self._retries = Retries(
            outbox,
            self.presence,
            store,
            monotonic,
            interval_s=settings.retry_interval_s,
            scan_s=settings.retry_scan_s,
            retry_max=settings.retry_max,
        )
        self._expiry = Expiry(store, clock.wall_ms)
        self.service = Service(
            store=store,
            doors=self._doors,
            replies=self._replies,
            directory=self._directory,
            healthy=self._problem,
            statistics=self.statistics,
            heard_of=self._dispatcher.heard_of,
            wall_s=clock.wall_s,
        )

    @property
    def commit_rows(self) -> Any:
        """`Committer.commit_rows`, for parts that keep durable rows of their own."""
        return self._committer.commit_rows

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every stage until cancelled. Started means: message ids are reserved."""
        await self._directory.load()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._committer.run)
            await nursery.start(self._completion.run)
            await nursery.start(self._fanout.run)
            await nursery.start(self._dispatcher.run)
            await nursery.start(self._retries.run)
            await nursery.start(self._expiry.run)
            task_status.started()

    async def drain(self) -> None:
        """Return when everything admitted so far has been answered; call once doors are shut."""
        while self._send_path.inflight_bytes > 0 and self._committer.healthy:
            await self._committer.drain()
            await trio.sleep(0.01)

    # --- Ingress --------------------------------------------------------------------------------

    def connects(self, batch: Sequence[ConnectRequest]) -> None:
        for request in batch:
            self._logins.connect(request)

    def packets(self, batch: Sequence[tuple[int, Send | Recvack]]) -> None:
        sessions = self.presence.by_conn
        admit = self._doors.client
        for conn_id, packet in batch:
            session = sessions.get(conn_id)
            if session is None:
                continue
            if isinstance(packet, Send):
                admit(session, packet)
            elif not packet.flags & _NO_PERSIST:
                session.pending.pop(packet.message_id, None)
        self._replies.queue()

    def closed(self, conn_ids: Sequence[int]) -> None:
        for conn_id in conn_ids:
            self._logins.disconnected(conn_id)

    async def recipients(self, message: Message) -> list[str]:
        """Return the uids a stored message goes to, the sender and the system uid left out.

        Raises: StoreError.
        """
        uids = recipients_of(message, self.members)
        while isinstance(uids, Loading):
            await trio.lowlevel.checkpoint()
            self.members.load(uids)
            if uids.done:
                uids = with_visitor(message, uids.uids)
        return [uid for uid in uids if uid not in (message.from_uid, SYSTEM_UID)]

    # --- Answers --------------------------------------------------------------------------------

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        self._dispatcher.answered(plugin_no, answers)
        self._replies.flush()

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        self._dispatcher.moved(lines, call_ids)

    def chain_changed(self, chain: Chain) -> None:
        """Make a new snapshot hold for what is admitted from now on."""
        self._dispatcher.set_chain(chain)
        self._lookups.chain_changed()

    # --- events of the stages -------------------------------------------------------------------

    def _delivered(self, size: int) -> None:
        self._send_path.delivered(size)

    def _failed(self, batch: list[Inflight]) -> None:
        self._send_path.failed(batch)

    def _stored(self, messages: Sequence[Message]) -> None:
        self._events.hook.messages_stored(messages=messages)

    def _opened(self, uid: str, conn_id: int) -> None:
        self._events.hook.session_opened(uid=uid, conn_id=conn_id)

    def _closed(self, uid: str, conn_id: int) -> None:
        self._events.hook.session_closed(uid=uid, conn_id=conn_id)

    def _problem(self) -> str:
        """Return what is wrong in one sentence, "" when healthy."""
        if not self._committer.healthy:
            return "the store is not available: messages are refused with reason 15"
        return ""

    def statistics(self) -> dict[str, Any]:
        return {
            "sessions": len(self.presence),
            "send": self._send_path.statistics(),
            "commit": self._committer.statistics(),
            "fanout": self._fanout.statistics(),
            "hooks": self._dispatcher.statistics(),
            "lookups": self._lookups.statistics(),
            "logins": self._logins.statistics(),
            "expired_rows_removed": self._expiry.removed,
            "retries": {
                "retried": self._retries.retried,
                "given_up": self._retries.given_up,
            },
        }
