"""The way of one message, from any door to its answer. Reads top to bottom as the list of steps:

admit -> dedupe -> look-ups -> permission -> hooks -> lane -> sequence and commit -> answer, deliver

Theory of operation. Everything here is synchronous and works on what one batch brought; `turn_done`
lets the answers out once per batch. A message that needs no plugin goes from `_admit` straight to
the committer. One that must wait (a look-up, a verdict) takes its place in its lane first, so that
later ones of the same sender and channel cannot pass it. Each message ends in `_answer` exactly
once, with its durable numbers or with the reason why not; repeats that joined it share its fate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from wkhost.addressing import canonical_id, command_id, original_id, subscribers_channel_id
from wkhost.clock import MessageIds
from wkhost.delivery.boundary import Outbox
from wkhost.delivery.fanout import Fanout, weight
from wkhost.delivery.presence import Presence, Session
from wkhost.errors import ReasonCode, StoreBusyError, StoreError
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.passage import Passage
from wkhost.hooks.target import SendOrigin
from wkhost.hooks.verdict import Refuse
from wkhost.kernel.channels import REASONS_MAX, ChannelState, ChannelTable
from wkhost.kernel.inflight import Inflight, Lanes, Progress, SentCallback, Waiter
from wkhost.kernel.lookups import LookupRefused, Lookups
from wkhost.kernel.permission import Permissions
from wkhost.kernel.recent import RecentSends
from wkhost.kernel.sequence import Committer
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import SendMessage
from wkhost.protocol.packets import Send, Sendack
from wkhost.store.store import Store
from wkhost.types import (
    MAX_STRING_BYTES,
    ONLINE_CMD_CHANNEL_ID,
    SYSTEM_DEVICE_ID,
    SYSTEM_UID,
    ChannelType,
    DeviceFlag,
    Flags,
    Message,
    Setting,
)

SUCCESS = int(ReasonCode.SUCCESS)
_NO_PERSIST = int(Flags.NO_PERSIST)
_SYNC_ONCE = int(Flags.SYNC_ONCE)
MAX_CHANNEL_TYPE = 255
_PAIR_TYPES = (ChannelType.PERSON, ChannelType.AGENT)
JOINED_MAX = 1000
"""Repeats that may wait for one message in flight."""
_KEPT_SETTING = 0xFF & ~int(Setting.NO_ENCRYPT)
"""NO_ENCRYPT says how the SEND was encoded, nothing about the message."""
_SYSTEM_ERROR = int(ReasonCode.SYSTEM_ERROR)
_RATE_LIMIT = int(ReasonCode.RATE_LIMIT)
_UNDECODABLE = int(ReasonCode.PAYLOAD_DECODE_ERROR)


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
        ids: MessageIds,
        presence: Presence,
        fanout: Fanout,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._channels = channels
        self._permissions = permissions
        self._lookups = lookups
        self._ids = ids
        self._presence = presence
        self._fanout = fanout
        self._outbox = outbox
        self._recent = RecentSends(clock)
        self._lanes = Lanes(self._ready, settings.max_lane_bytes)
        self._acks: list[tuple[int, Sendack]] = []
        self.inflight_bytes = 0
        """Bytes (`weight`) of what is between admission and delivery."""
        self.reasons: Counter[int] = Counter()
        """Answers by reason code."""

    # --- doors ----------------------------------------------------------------------------------

    def admit_client(self, session: Session, send: Send) -> None:
        """Take a client's SEND; its SENDACK follows in this turn or a later one."""
        payload = send.payload
        flags = send.flags
        try:
            message_id = self._ids.next()
        except StoreBusyError:
            self.committer.raise_ceiling()
            self._refuse_client(session.conn_id, send, 0, _SYSTEM_ERROR, "")
            return
        if payload is None or len(payload) > self._settings.max_payload_bytes:
            text = "" if payload is None else "payload too large"
            self._refuse_client(session.conn_id, send, message_id, _UNDECODABLE, text)
            return
        channel_type = send.channel_type
        message = Message(
            message_id,
            canonical_id(session.uid, send.channel_id, channel_type),
            channel_type,
            session.uid,
            send.client_msg_no,
            payload,
            flags,
            send.setting & _KEPT_SETTING,
            send.expire,
            send.topic,
        )
        channel = self._channels.get(message.channel_id, channel_type)
        m = Inflight(
            message,
            session.origin,
            self.dispatcher.chain,
            channel,
            conn_id=session.conn_id,
            client_seq=send.client_seq,
        )
        size = weight(message)
        if session.inflight_bytes + size > self._settings.max_inflight_bytes_per_connection:
            self._answer(m, _RATE_LIMIT, "too much of this connection waits")
            return
        self._admit(m, size)

    def _refuse_client(
        self, conn_id: int, send: Send, message_id: int, reason: int, text: str
    ) -> None:
        self.reasons[reason] += 1
        self._acks.append(
            (conn_id, Sendack(send.client_seq, message_id, 0, reason, send.flags, text))
        )

    def admit_request(
        self, request: SendMessage, *, door: str, done: SentCallback, hop: int = 0
    ) -> None:
        """Take a message from another door ("http" or a plugin's number).

        `done` is called in this turn or a later one. Commands (sync_once) go to the channel's
        command twin; with `subscribers` to a channel of their own.
        """
        from_uid = request.from_uid.strip() or SYSTEM_UID
        channel_id, channel_type = self._address(request, from_uid)
        problem = _problem_of(request, channel_id, self._settings.max_payload_bytes)
        try:
            message_id = self._ids.next()
        except StoreBusyError:
            self.committer.raise_ceiling()
            self.reasons[_SYSTEM_ERROR] += 1
            done(0, 0, _SYSTEM_ERROR, "no message ids while the store is not available")
            return
        message = Message(
            message_id,
            channel_id,
            channel_type,
            from_uid,
            request.client_msg_no,
            request.payload,
            request.flags,
            request.setting & _KEPT_SETTING,
            request.expire,
            request.topic,
            hop=hop,
        )
        origin = _HTTP if door == _HTTP.door else _plugin_origin(door)
        channel = self._channels.get(channel_id, channel_type)
        m = Inflight(message, origin, self.dispatcher.chain, channel, done=done)
        if request.subscribers:
            m.recipients = list(dict.fromkeys(request.subscribers))
        if problem is not None:
            self._answer(m, *problem)
        else:
            self._admit(m, weight(message))

    def _address(self, request: SendMessage, from_uid: str) -> tuple[str, int]:
        if request.subscribers:
            if request.flags & _NO_PERSIST:
                return ONLINE_CMD_CHANNEL_ID, ChannelType.TEMP
            return subscribers_channel_id(request.subscribers), ChannelType.TEMP
        channel_id = canonical_id(from_uid, request.channel_id, request.channel_type)
        if request.flags & _SYNC_ONCE:
            channel_id = command_id(channel_id, request.channel_type)
        return channel_id, request.channel_type

    # --- admission ------------------------------------------------------------------------------

    def _admit(self, m: Inflight, size: int) -> None:
        """Dedupe, bound, and send the message on its way."""
        message = m.message
        if message.client_msg_no and self._is_repeat(m):
            return
        lane = self._lanes.find(m)
        if not self._lanes.has_room(lane, size):
            self._answer(m, _RATE_LIMIT, "too much of this sender waits in this channel")
            return
        if self.inflight_bytes + size > self._settings.max_inflight_bytes:
            self._answer(m, _RATE_LIMIT, "the server is overloaded")
            return
        if not self.committer.healthy:
            self._answer(m, _SYSTEM_ERROR, "the store is not available")
            return
        self._enter(m, size)
        chain = m.chain
        if lane is None and not (chain.send or chain.channel_get or chain.user_get):
            reason = self._cached_reason(m)
            if reason == SUCCESS:
                self.committer.put(m)
            else:
                self._refuse(m, reason, "")
            return
        self._lanes.enter(m, lane)
        self._look_up(m)

    def _is_repeat(self, m: Inflight) -> bool:
        """Answer or join when this is a repeat of (channel, from_uid, client_msg_no)."""
        message = m.message
        channel = m.channel
        first = channel.inflight.get((message.from_uid, message.client_msg_no))
        if first is not None:
            if first.joined is None:
                first.joined = []
            elif len(first.joined) >= JOINED_MAX:
                self._answer(m, _RATE_LIMIT, "too many repeats of this message wait")
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
            self._answer(m, _SYSTEM_ERROR, "the store is not available")
            return True
        if found is None:
            return False
        message.message_id, message.message_seq = found
        self._answer(m, SUCCESS, "")
        return True

    def _enter(self, m: Inflight, size: int) -> None:
        """From here on the message counts, and ends in `_refuse` or `complete`."""
        message = m.message
        channel = m.channel
        channel.pins += 1
        self.inflight_bytes += size
        if message.client_msg_no:
            channel.inflight[message.from_uid, message.client_msg_no] = m
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
            self._refuse(m, refused.reason_code, refused.text)
            return
        self._check(m)

    def looked_up(self, m: Inflight) -> None:
        """A look-up that `m` waited for is answered."""
        self._look_up(m)

    def _check(self, m: Inflight) -> None:
        reason = self._reason(m)
        if reason != SUCCESS:
            self._refuse(m, reason, "")
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
        return None if reason == SUCCESS else Refuse(reason)

    def _ready(self, m: Inflight) -> None:
        if self.committer.healthy:
            self.committer.put(m)
        else:
            self._give_up(m, "the store is not available")

    def _refuse(self, m: Inflight, reason: int, text: str) -> None:
        """End a message that had entered; its repeats may try again."""
        self._leave(m)
        self.inflight_bytes -= m.size
        self._lanes.settle(m, Progress.GONE)
        self._answer(m, reason, text)

    def failed(self, batch: Sequence[Inflight]) -> None:
        """A commit failed: these messages are not stored."""
        for m in batch:
            self._give_up(m, "the message could not be stored")
        self.turn_done()

    def _give_up(self, m: Inflight, text: str) -> None:
        self._leave(m)
        self.inflight_bytes -= m.size
        self._answer(m, _SYSTEM_ERROR, text)

    def complete(self, m: Inflight) -> int:
        """A message is durable: answer it and hand it to delivery. Returns connections served."""
        self._leave(m)
        message = m.message
        # A plugin may have replaced the payload; delivery gives back what it has now.
        self.inflight_bytes += weight(message) - m.size
        if message.flags & _NO_PERSIST and message.client_msg_no:
            self._recent.remember(m.channel, message)
        self._answer(m, SUCCESS, "")
        return self._fanout.deliver(message, m.conn_id, m.recipients)

    def delivered(self, size: int) -> None:
        """A message is pushed to everybody."""
        self.inflight_bytes -= size

    def _leave(self, m: Inflight) -> None:
        channel = m.channel
        channel.pins -= 1
        message = m.message
        if message.client_msg_no:
            channel.inflight.pop((message.from_uid, message.client_msg_no), None)
        if m.conn_id:
            session = self._presence.by_conn.get(m.conn_id)
            if session is not None:
                session.inflight_bytes -= m.size

    def _answer(self, m: Inflight, reason: int, text: str) -> None:
        """Tell everybody who waits for this message. The only place that turns fates to answers."""
        message = m.message
        message_id = message.message_id
        seq = message.message_seq
        self.reasons[reason] += 1
        if m.conn_id:
            self._acks.append(
                (m.conn_id, Sendack(m.client_seq, message_id, seq, reason, message.flags, text))
            )
        elif m.done is not None:
            m.done(message_id, seq, reason, text)
        if m.joined is not None:
            for waiter in m.joined:
                self._answer_waiter(waiter, message_id, seq, reason, text)
            m.joined = None

    def _answer_waiter(
        self, waiter: Waiter, message_id: int, seq: int, reason: int, text: str
    ) -> None:
        if waiter.conn_id:
            ack = Sendack(waiter.client_seq, message_id, seq, reason, waiter.flags, text)
            self._acks.append((waiter.conn_id, ack))
        elif waiter.done is not None:
            waiter.done(message_id, seq, reason, text)

    def queue_acks(self) -> None:
        """Hand the answers of this turn to the gateway, which writes them at its next flush."""
        if self._acks:
            acks, self._acks = self._acks, []
            self._outbox.sendacks(acks)

    def turn_done(self) -> None:
        """Let the answers and pushes of this turn out."""
        self.queue_acks()
        self._outbox.flush()

    def statistics(self) -> dict[str, object]:
        return {
            "inflight_bytes": self.inflight_bytes,
            "lanes": len(self._lanes),
            "channels": len(self._channels),
            "reasons": {str(reason): n for reason, n in sorted(self.reasons.items())},
        }


_HTTP = SendOrigin("http", device_id=SYSTEM_DEVICE_ID, device_flag=DeviceFlag.SYSTEM)


def _plugin_origin(no: str) -> SendOrigin:
    return SendOrigin(no, device_id=SYSTEM_DEVICE_ID, device_flag=DeviceFlag.SYSTEM)


def _problem_of(
    request: SendMessage, channel_id: str, max_payload_bytes: int
) -> tuple[int, str] | None:
    """Return why a request can never be sent, as (reason, text), or None."""
    if len(request.payload) > max_payload_bytes:
        return _UNDECODABLE, f"payload: at most {max_payload_bytes} bytes"
    if not 0 <= request.channel_type <= MAX_CHANNEL_TYPE:
        return ReasonCode.NOT_SUPPORT_CHANNEL_TYPE, f"channel_type: 0 to {MAX_CHANNEL_TYPE}"
    if "@" in request.from_uid and request.channel_type in _PAIR_TYPES:
        return ReasonCode.CHANNEL_ID_ERROR, "from_uid: holds @, which parts the uids of a chat"
    for name, text in (
        ("from_uid", request.from_uid),
        ("channel_id", channel_id),
        ("client_msg_no", request.client_msg_no),
        ("topic", request.topic),
    ):
        if len(text.encode("utf-8", "surrogatepass")) > MAX_STRING_BYTES:
            return ReasonCode.CHANNEL_ID_ERROR, f"{name}: at most {MAX_STRING_BYTES} bytes"
    return None
