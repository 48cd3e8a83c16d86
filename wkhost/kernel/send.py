"""The way of one message, from any door to its answer. Reads top to bottom as the list of steps:

admit -> dedupe -> look-ups -> permission -> hooks -> lane -> sequence and commit -> answer, deliver

Theory of operation. Everything here is synchronous and works on what one batch brought; answers
leave once per batch. A message that needs no plugin goes from `admit` to the committer at once. One
that must wait (a look-up, a verdict) takes its place in its lane first, so that later ones of the
same sender and channel cannot pass it. Each message ends in `Replies.tell` exactly once, with its
durable numbers or with the reason why not; repeats that joined it share its fate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wkhost.addressing import original_id
from wkhost.delivery.fanout import Fanout
from wkhost.delivery.presence import Presence
from wkhost.errors import ReasonCode, StoreError
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.passage import Passage
from wkhost.hooks.verdict import Refuse
from wkhost.kernel.channels import REASONS_MAX, ChannelState, ChannelTable
from wkhost.kernel.inflight import Inflight, Lanes, Progress, Waiter
from wkhost.kernel.lookups import LookupRefused, Lookups
from wkhost.kernel.permission import Permissions
from wkhost.kernel.recent import RecentSends
from wkhost.kernel.replies import Replies
from wkhost.kernel.sequence import Committer
from wkhost.kernel.settings import KernelSettings
from wkhost.store.store import Store
from wkhost.types import Flags

SUCCESS = int(ReasonCode.SUCCESS)
_NO_PERSIST = int(Flags.NO_PERSIST)
JOINED_MAX = 1000
"""Repeats that may wait for one message in flight."""
_SYSTEM_ERROR = int(ReasonCode.SYSTEM_ERROR)
_RATE_LIMIT = int(ReasonCode.RATE_LIMIT)


class SendPath:
    """Owns every message between admission and answer.

    Set `dispatcher` and `committer` before the first message: they call back.
    """

    dispatcher: Dispatcher
    committer: Committer

    def __init__(
        self,
        *,
        settings: KernelSettings,
        store: Store,
        channels: ChannelTable,
        permissions: Permissions,
        lookups: Lookups,
        presence: Presence,
        fanout: Fanout,
        replies: Replies,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._channels = channels
        self._permissions = permissions
        self._lookups = lookups
        self._presence = presence
        self._fanout = fanout
        self._replies = replies
        self._clock = clock
        self._recent = RecentSends(clock)
        self._lanes = Lanes(self._ready, settings.max_lane_bytes)
        # The first copy of each message with a client_msg_no that is not answered yet.
        self._first: dict[tuple[ChannelState, str, str], Inflight] = {}
        self.inflight_bytes = 0
        """Bytes (`weight`) of what is between admission and delivery."""

    # --- admission ------------------------------------------------------------------------------

    def admit(self, m: Inflight, size: int) -> None:
        """Dedupe, bound, and send the message on its way."""
        message = m.message
        if message.client_msg_no and self._is_repeat(m):
            return
        lane = self._lanes.find(m)
        if not self._lanes.has_room(lane, size):
            self.turn_away(m, _RATE_LIMIT, "too much of this sender waits in this channel")
            return
        if self.inflight_bytes + size > self._settings.max_inflight_bytes:
            self.turn_away(m, _RATE_LIMIT, "the server is overloaded")
            return
        if not self.committer.healthy:
            self.turn_away(m, _SYSTEM_ERROR, "the store is not available")
            return
        self._enter(m, size)
        chain = m.chain
        if lane is None and not (chain.send or chain.channel_get or chain.user_get):
            reason = self._cached_reason(m)
            if reason == SUCCESS:
                self.committer.put(m)
            else:
                self._deny(m, reason)
            return
        self._lanes.enter(m, lane)
        if chain.channel_get or chain.user_get:
            self._look_up(m)
        else:
            self._check(m)

    def _is_repeat(self, m: Inflight) -> bool:
        """Answer or join when this is a repeat of (channel, from_uid, client_msg_no)."""
        message = m.message
        channel = m.channel
        first = self._first.get((channel, message.from_uid, message.client_msg_no))
        if first is not None:
            if first.joined is None:
                first.joined = []
            elif len(first.joined) >= JOINED_MAX:
                self.turn_away(m, _RATE_LIMIT, "too many repeats of this message wait")
                return True
            first.joined.append(Waiter(m.conn_id, m.client_seq, message.flags, m.done))
            return True
        try:
            found = self._recent.find(channel, message) if self._recent else None
            if found is None:
                found = self._store.find_client_msg_no(
                    channel.channel_id,
                    channel.channel_type,
                    message.from_uid,
                    message.client_msg_no,
                )
        except StoreError:
            self.turn_away(m, _SYSTEM_ERROR, "the store is not available")
            return True
        if found is None:
            return False
        message.message_id, message.message_seq = found
        self._replies.tell(m, SUCCESS, "")
        return True

    def _enter(self, m: Inflight, size: int) -> None:
        """From here on the message counts, and ends in `_refuse` or `complete`."""
        message = m.message
        channel = m.channel
        channel.pins += 1
        self.inflight_bytes += size
        if message.client_msg_no:
            self._first[channel, message.from_uid, message.client_msg_no] = m
        if m.conn_id:
            session = self._presence.by_conn.get(m.conn_id)
            if session is not None:
                session.inflight_bytes += size
        m.size = size

    # --- look-ups and permission ----------------------------------------------------------------

    def _look_up(self, m: Inflight) -> None:
        """Get what plugins have to say about the sender and the channel, then go on."""
        lookups = self._lookups
        chain = m.chain
        message = m.message
        try:
            if chain.user_get and not m.trusted and not lookups.user(m, message.from_uid):
                return
            channel_id = original_id(message.channel_id)
            if chain.channel_get and not lookups.channel(m, channel_id, message.channel_type):
                return
        except LookupRefused as refused:
            self._deny(m, refused.reason_code, refused.text)
            return
        self._check(m)

    def looked_up(self, m: Inflight) -> None:
        """A look-up that `m` waited for is answered."""
        self._look_up(m)

    def _check(self, m: Inflight) -> None:
        reason = self._reason(m)
        if reason != SUCCESS:
            self._deny(m, reason)
        elif self.dispatcher.begin(m):
            self._lanes.settle(m, Progress.READY)

    def _reason(self, m: Inflight) -> int:
        """Return what the permissions say, overrides of plugins included."""
        chain = m.chain
        if not (chain.channel_get or chain.user_get):
            return self._cached_reason(m)
        message = m.message
        lookups = self._lookups
        try:
            return self._permissions.reason(
                message.from_uid,
                message.channel_id,
                message.channel_type,
                trusted=m.trusted,
                info=lookups.channel_info(m),
                send_banned=lookups.send_banned(m),
            )
        except StoreError:
            return _SYSTEM_ERROR

    def _cached_reason(self, m: Inflight) -> int:
        channel = m.channel
        if channel.acl_version != self._channels.acl_version:
            channel.reasons.clear()
            channel.acl_version = self._channels.acl_version
        sender = "" if m.trusted else m.message.from_uid
        reason = channel.reasons.get(sender)
        if reason is None:
            reason = self._fresh_reason(channel, m)
            if reason != _SYSTEM_ERROR:
                if len(channel.reasons) >= REASONS_MAX:
                    channel.reasons.clear()
                channel.reasons[sender] = reason
        return reason

    def _fresh_reason(self, channel: ChannelState, m: Inflight) -> int:
        try:
            return self._permissions.reason(
                m.message.from_uid, channel.channel_id, channel.channel_type, trusted=m.trusted
            )
        except StoreError:
            return _SYSTEM_ERROR

    # --- decisions ------------------------------------------------------------------------------

    def decided(self, passage: Passage) -> None:
        """The chain has ended for a message that waited."""
        assert isinstance(passage, Inflight)
        refusal = passage.refusal
        if refusal is not None:
            self._refuse(passage, refusal.code, refusal.text)
        else:
            self._lanes.settle(passage, Progress.READY)

    def recheck(self, passage: Passage) -> Refuse | None:
        """A parked message is released: permissions may have changed meanwhile."""
        assert isinstance(passage, Inflight)
        reason = self._reason(passage)
        if reason == SUCCESS:
            return None
        self._note(passage, reason, "")
        return Refuse(reason)

    def _ready(self, m: Inflight) -> None:
        if self.committer.healthy:
            self.committer.put(m)
        else:
            self._give_up(m, "the store is not available")

    def turn_away(self, m: Inflight, reason: int, text: str) -> None:
        """Refuse a message that has not entered, or not any more."""
        self._note(m, reason, text)
        self._replies.tell(m, reason, text)

    def _deny(self, m: Inflight, reason: int, text: str = "") -> None:
        """The permissions or a look-up refuse a message that had entered."""
        self._note(m, reason, text)
        self._refuse(m, reason, text)

    def _note(self, m: Inflight, reason: int, text: str) -> None:
        message = m.message
        channel = (message.channel_id, message.channel_type)
        self.note_refusal(
            message.message_id, m.origin.door, message.from_uid, channel, reason, text
        )

    def note_refusal(
        self,
        message_id: int,
        door: str,
        from_uid: str,
        channel: tuple[str, int],
        reason: int,
        text: str,
    ) -> None:
        """Let the journal know of a refusal that is no plugin's verdict."""
        now = self._clock()
        self.dispatcher.journal.refused(message_id, door, from_uid, channel, now, reason, text)

    def _refuse(self, m: Inflight, reason: int, text: str) -> None:
        """End a message that had entered; its repeats may try again."""
        self._leave(m)
        self.inflight_bytes -= m.size
        self._lanes.settle(m, Progress.GONE)
        self._replies.tell(m, reason, text)

    def failed(self, batch: Sequence[Inflight]) -> None:
        """A commit failed: these messages are not stored."""
        for m in batch:
            self._give_up(m, "the message could not be stored")
        self._replies.flush()

    def _give_up(self, m: Inflight, text: str) -> None:
        self._leave(m)
        self.inflight_bytes -= m.size
        self.turn_away(m, _SYSTEM_ERROR, text)

    def complete(self, m: Inflight) -> int:
        """A message is durable: answer it and hand it to delivery. Returns connections served."""
        self._leave(m)
        message = m.message
        if message.flags & _NO_PERSIST and message.client_msg_no:
            self._recent.remember(m.channel, message)
        self._replies.tell(m, SUCCESS, "")
        return self._fanout.deliver(message, m.size, m.conn_id, m.recipients)

    def delivered(self, size: int) -> None:
        """A message is pushed to everybody."""
        self.inflight_bytes -= size

    def _leave(self, m: Inflight) -> None:
        channel = m.channel
        channel.pins -= 1
        message = m.message
        if message.client_msg_no:
            self._first.pop((channel, message.from_uid, message.client_msg_no), None)
        if m.conn_id:
            session = self._presence.by_conn.get(m.conn_id)
            if session is not None:
                session.inflight_bytes -= m.size

    def statistics(self) -> dict[str, object]:
        return {
            "inflight_bytes": self.inflight_bytes,
            "inflight_numbers": len(self._first),
            "lanes": len(self._lanes),
            "channels": len(self._channels),
            "reasons": {str(code): n for code, n in sorted(self._replies.reasons.items())},
        }
