"""A small in-memory kernel service behind the link's contract, for tests of the link and the API.

It keeps the contract's meaning simply: no plugins, no network, no disk. Whole-server tests use the
real kernel instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex

from wkhost.errors import ReasonCode
from wkhost.link import contract as c
from wkhost.types import ChannelType, Flags, person_channel_id

Done = Callable[[c.Sent | c.Error], None]


@dataclass
class FakeChannel:
    info: c.SetChannel | None = None
    subscribers: dict[str, int] = field(default_factory=dict)
    denylist: set[str] = field(default_factory=set)
    allowlist: set[str] = field(default_factory=set)
    messages: list[c.MessageRecord] = field(default_factory=list)


class FakeService:
    """`seen` holds every request in the order it came; `held` the sends kept by `hold_sends`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.channels: dict[tuple[str, int], FakeChannel] = {}
        self.tokens: dict[tuple[str, int], c.SetUserToken] = {}
        self.system_uids: set[str] = set()
        self.seen: list[c.Request] = []
        self.hold_sends = False
        self.held: list[tuple[c.SendMessage, Done]] = []
        self.health = c.Health(ok=True)
        self.keep_requests = True
        self._last_id = 1 << 50

    def channel(self, channel_id: str, channel_type: int) -> FakeChannel:
        return self.channels.setdefault((channel_id, channel_type), FakeChannel())

    def send_nowait(self, request: c.SendMessage, done: Done) -> None:
        if self.keep_requests:
            self.seen.append(request)
        if self.hold_sends:
            self.held.append((request, done))
        else:
            done(self._send(request))

    def release(self) -> None:
        held, self.held = self.held, []
        for request, done in held:
            done(self._send(request))

    async def handle(self, request: c.Request, actor: c.Actor) -> c.Response:
        self.seen.append(request)
        match request:
            case c.GetHealth():
                return self.health
            case c.SetUserToken():
                return self._set_token(request)
            case c.AddSystemUids():
                self.system_uids.update(request.uids)
            case c.SyncMessages():
                return self._sync(request)
            case c.GetMaxMessageSeq():
                key = _canonical(request.login_uid, request.channel_id, request.channel_type)
                return c.MaxMessageSeq(len(self.channel(key, request.channel_type).messages))
            case c.ListPlugins():
                return c.PluginList([])
            case (
                c.SetChannel()
                | c.AddSubscribers()
                | c.RemoveSubscribers()
                | c.AddToDenylist()
                | c.AddToAllowlist()
            ):
                self._change(request)
            case _:
                return c.Error(c.ErrorKind.NOT_FOUND, f"no {type(request).__name__} here")
        return c.Done()

    def _change(
        self,
        request: c.SetChannel
        | c.AddSubscribers
        | c.RemoveSubscribers
        | c.AddToDenylist
        | c.AddToAllowlist,
    ) -> None:
        channel = self.channel(request.channel_id, request.channel_type)
        match request:
            case c.SetChannel():
                channel.info = request
        match request:
            case c.SetChannel() | c.AddSubscribers():
                if request.reset:
                    channel.subscribers.clear()
                channel.subscribers.update((s.uid, s.role) for s in request.subscribers)
            case c.RemoveSubscribers():
                for uid in request.uids:
                    channel.subscribers.pop(uid, None)
            case c.AddToDenylist():
                channel.denylist.update(request.uids)
            case c.AddToAllowlist():
                channel.allowlist.update(request.uids)

    def _set_token(self, request: c.SetUserToken) -> c.UserStatus:
        info = self.channel(request.uid, ChannelType.PERSON).info
        if info is not None and (info.ban or info.disband):
            return c.UserStatus(ReasonCode.BAN if info.ban else ReasonCode.DISBAND)
        self.tokens[request.uid, request.device_flag] = request
        return c.UserStatus(200)

    def _send(self, request: c.SendMessage) -> c.Sent:
        self._last_id += 1
        number = request.client_msg_no or token_hex(16) + "0"
        key = _canonical(request.from_uid, request.channel_id, request.channel_type)
        info = self.channel(key, request.channel_type).info
        if info is not None and (info.ban or info.disband):
            reason = ReasonCode.BAN if info.ban else ReasonCode.DISBAND
            return c.Sent(self._last_id, 0, number, reason, "channel closed")
        if request.flags & Flags.NO_PERSIST or request.subscribers:
            return c.Sent(self._last_id, 0, number, ReasonCode.SUCCESS)
        return self._store(request, key, number)

    def _store(self, request: c.SendMessage, key: str, number: str) -> c.Sent:
        if request.flags & Flags.SYNC_ONCE:
            key += "____cmd"
        messages = self.channel(key, request.channel_type).messages
        for earlier in messages if self.keep_requests else ():
            if (earlier.from_uid, earlier.client_msg_no) == (request.from_uid, number):
                return c.Sent(earlier.message_id, earlier.message_seq, number, ReasonCode.SUCCESS)
        record = c.MessageRecord(
            message_id=self._last_id,
            message_seq=len(messages) + 1,
            channel_id=key,
            channel_type=request.channel_type,
            from_uid=request.from_uid,
            client_msg_no=number,
            payload=request.payload,
            flags=request.flags,
            setting=request.setting,
            expire=request.expire,
            topic=request.topic,
            timestamp=1_700_000_000,
        )
        messages.append(record)
        return c.Sent(record.message_id, record.message_seq, number, ReasonCode.SUCCESS)

    def _sync(self, request: c.SyncMessages) -> c.MessagePage:
        key = _canonical(request.login_uid, request.channel_id, request.channel_type)
        stored = self.channel(key, request.channel_type).messages
        first, last = _bounds(request, len(stored))
        limit = _limit(request)
        page = [m for m in stored if first <= m.message_seq <= last]
        newest = request.start_message_seq == 0 and request.end_message_seq == 0
        page = page[-limit:] if newest or request.pull_mode != 1 else page[:limit]
        return c.MessagePage(page, more=bool(page) and len(page) >= limit)


def _limit(request: c.SyncMessages) -> int:
    return min(request.limit if request.limit > 0 else 50, 10_000)


def _bounds(request: c.SyncMessages, last: int) -> tuple[int, int]:
    """First and last message_seq of the range asked for; empty when first > last."""
    start, end = request.start_message_seq, request.end_message_seq
    if start == 0 and end == 0:
        return 1, last
    if request.pull_mode == 1:
        return start, end - 1 if end else last
    if end > start:
        return 1, 0
    lowest = start - _limit(request) + 1
    return max(end + 1, lowest) if end else lowest, start


def _canonical(uid: str, channel_id: str, channel_type: int) -> str:
    if channel_type == ChannelType.PERSON and "@" not in channel_id:
        return person_channel_id(uid, channel_id)
    return channel_id
