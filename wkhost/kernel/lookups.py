"""What plugins override in the kernel's records: single-flighted, cached, and never waited for.

Theory of operation. One `AnswerCache` per kind of question. A question that is cached is answered
at once; one that is being asked already is joined; otherwise the dispatcher asks the plugins, and
whoever waits is called back. Answers are kept in memory for their TTL; long ones also in the
store, so that a restart does not ask everything again. "No override" is an answer too and is kept
for `CONTINUE_TTL_S`. Failures are not kept. What is kept and joined holds for the current chain:
a message that was admitted under an older one asks for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import msgspec
import structlog

from wkhost.errors import StoreError
from wkhost.hooks.chain import Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.lookup import (
    ChannelLookup,
    LoginLookup,
    LookupAnswer,
    LookupCall,
    UserLookup,
)
from wkhost.hooks.target import ChannelAnswer, UserAnswer
from wkhost.hooks.verdict import CLOSED_REASON, Failure
from wkhost.kernel.inflight import UNASKED, Inflight
from wkhost.kernel.permission import Permissions
from wkhost.store import mutations
from wkhost.store.store import Store
from wkhost.types import ChannelInfo

CONTINUE_TTL_S = 5.0
STORED_TTL_S = 10.0
"""Answers that live at least this long are also kept in the store."""
ENTRIES_MAX = 50_000

log = structlog.get_logger(__name__)

Kept = ChannelAnswer | UserAnswer | None
MakeCall = Callable[[tuple[Step, ...], Callable[[LookupAnswer], None]], LookupCall]


class LookupRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A look-up failed, and the policy of its hook is not open."""

    def __init__(self, reason_code: int, text: str) -> None:
        super().__init__(reason_code, text)
        self.reason_code = reason_code
        self.text = text


class AnswerCache:
    """Answers of one kind. `key` names a question; `name` separates kinds in the store."""

    def __init__(
        self,
        name: str,
        answer_type: type[ChannelAnswer] | type[UserAnswer],
        store: Store,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        self._name = name
        self._store = store
        self._clock = clock
        self._wall_ms = wall_ms
        self._steps: tuple[Step, ...] = ()
        self._decoder: msgspec.msgpack.Decoder[Kept] = msgspec.msgpack.Decoder(answer_type)
        self._kept: OrderedDict[Hashable, tuple[float, Kept]] = OrderedDict()
        self._asking: dict[Hashable, list[Callable[[LookupAnswer], None]]] = {}
        self.hits = 0
        self.asked = 0
        self.joined = 0

    def chain_changed(self, steps: tuple[Step, ...]) -> None:
        """Keep answers of `steps` from now on, and forget those of other plugins."""
        self._steps = steps
        self._kept.clear()
        # Who asks already still hears of it, but nobody joins, and nothing of it is kept.
        self._asking = {}

    def find(self, key: Hashable, steps: tuple[Step, ...]) -> tuple[bool, Kept]:
        """Return (True, answer) when an answer is kept."""
        if steps is not self._steps:
            return False, None
        entry = self._kept.get(key)
        if entry is not None:
            if entry[0] > self._clock():
                self.hits += 1
                return True, entry[1]
            del self._kept[key]
        return self._find_stored(key, steps)

    def _find_stored(self, key: Hashable, steps: tuple[Step, ...]) -> tuple[bool, Kept]:
        try:
            row = self._store.cached(self._row_key(key, steps), self._wall_ms())
        except StoreError:
            return False, None
        if row is None:
            return False, None
        try:
            answer = self._decoder.decode(row)
        except msgspec.MsgspecError:
            # Written by another version: as good as not kept.
            return False, None
        self.hits += 1
        # The row's own expiry holds; memory only shortens the way for a while.
        self._keep(key, answer, CONTINUE_TTL_S)
        return True, answer

    def ask(
        self,
        key: Hashable,
        steps: tuple[Step, ...],
        dispatcher: Dispatcher,
        make_call: MakeCall,
        done: Callable[[LookupAnswer], None],
    ) -> None:
        """Ask the plugins, or join who asks already. `done` may be called before this returns."""
        if steps is not self._steps:
            self.asked += 1
            dispatcher.look_up(make_call(steps, done))
            return
        joined = self._asking.get(key)
        if joined is not None:
            self.joined += 1
            joined.append(done)
            return
        self.asked += 1
        waiting = self._asking[key] = [done]
        dispatcher.look_up(
            make_call(steps, lambda answer: self._answered(key, steps, waiting, answer))
        )

    def _answered(
        self,
        key: Hashable,
        steps: tuple[Step, ...],
        waiting: list[Callable[[LookupAnswer], None]],
        answer: LookupAnswer,
    ) -> None:
        if self._asking.get(key) is waiting:
            del self._asking[key]
            self._take(key, steps, answer)
        for done in waiting:
            done(answer)

    def _take(self, key: Hashable, steps: tuple[Step, ...], answer: LookupAnswer) -> None:
        """Keep an answer for as long as it holds."""
        if answer is None:
            self._keep(key, None, CONTINUE_TTL_S)
        elif isinstance(answer, ChannelAnswer | UserAnswer) and answer.ttl_s > 0:
            self._keep(key, answer, answer.ttl_s)
            if answer.ttl_s >= STORED_TTL_S:
                self._keep_stored(key, steps, answer)

    def _keep(self, key: Hashable, answer: Kept, ttl_s: float) -> None:
        self._kept[key] = (self._clock() + ttl_s, answer)
        if len(self._kept) > ENTRIES_MAX:
            self._kept.popitem(last=False)

    def _keep_stored(
        self, key: Hashable, steps: tuple[Step, ...], answer: ChannelAnswer | UserAnswer
    ) -> None:
        expires_at_ms = self._wall_ms() + int(answer.ttl_s * 1000)
        value = msgspec.msgpack.encode(answer)
        try:
            # Not synced: losing it costs one question.
            self._store.write(mutations.put_cache(self._row_key(key, steps), value, expires_at_ms))
        except StoreError as error:
            log.warning("answer_not_kept", kind=self._name, error=str(error))

    def _row_key(self, key: Hashable, steps: tuple[Step, ...]) -> bytes:
        """Answers hold for the plugins that gave them."""
        return msgspec.msgpack.encode((self._name, [step.target.no for step in steps], key))

    def statistics(self) -> dict[str, int]:
        return {
            "kept": len(self._kept),
            "asking": len(self._asking),
            "hits": self.hits,
            "asked": self.asked,
            "joined": self.joined,
        }


class Lookups:
    """The look-ups of messages and logins. Set `dispatcher` before the first one.

    `resume(m)` is called for a message that had to wait.
    """

    dispatcher: Dispatcher

    def __init__(
        self,
        store: Store,
        permissions: Permissions,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        self._permissions = permissions
        self._channels = AnswerCache("channel", ChannelAnswer, store, clock, wall_ms)
        self._users = AnswerCache("user", UserAnswer, store, clock, wall_ms)
        self._logins = AnswerCache("login", UserAnswer, store, clock, wall_ms)
        self.resume: Callable[[Inflight], None] = _not_wired

    def chain_changed(self) -> None:
        """Other plugins may answer otherwise."""
        chain = self.dispatcher.chain
        self._channels.chain_changed(chain.channel_get)
        self._users.chain_changed(chain.user_get)
        self._logins.chain_changed(chain.user_get)

    # --- for messages ---------------------------------------------------------------------------

    def user(self, m: Inflight, uid: str) -> bool:
        """Get the override of the sender's record. False: `m` waits and is resumed.

        Raises: LookupRefused.
        """
        steps = m.chain.user_get
        return self._get(
            m,
            "user_answer",
            self._users,
            uid,
            steps,
            lambda steps, done: UserLookup(steps, done, uid),
        )

    def channel(self, m: Inflight, channel_id: str, channel_type: int) -> bool:
        """Get the override of the channel's record. False: `m` waits and is resumed.

        Raises: LookupRefused.
        """
        return self._get(
            m,
            "channel_answer",
            self._channels,
            (channel_id, channel_type),
            m.chain.channel_get,
            lambda steps, done: ChannelLookup(steps, done, channel_id, channel_type),
        )

    def _get(
        self,
        m: Inflight,
        slot: str,
        cache: AnswerCache,
        key: Hashable,
        steps: tuple[Step, ...],
        make_call: MakeCall,
    ) -> bool:
        answer = getattr(m, slot)
        if answer is not UNASKED:
            if isinstance(answer, Failure):
                text = f"{slot.removesuffix('_answer')} look-up: {answer.outcome}"
                raise LookupRefused(CLOSED_REASON[answer.outcome], text)
            return True
        found, kept = cache.find(key, steps)
        if found:
            setattr(m, slot, kept)
            return True
        waiting = False

        def answered(result: LookupAnswer) -> None:
            setattr(m, slot, result)
            if waiting:
                self.resume(m)

        cache.ask(key, steps, self.dispatcher, make_call, answered)
        if getattr(m, slot) is UNASKED:
            waiting = True
            return False
        return self._get(m, slot, cache, key, steps, make_call)

    def channel_info(self, m: Inflight) -> ChannelInfo:
        """Return the channel's record with the overrides that `m` was given.

        Raises: StoreError.
        """
        message = m.message
        info = self._permissions.channel_info(message.channel_id, message.channel_type)
        answer = m.channel_answer
        if not isinstance(answer, ChannelAnswer):
            return info
        changes = {
            name: value
            for name in ChannelInfo.__struct_fields__
            if (value := getattr(answer, name)) is not None
        }
        return msgspec.structs.replace(info, **changes)

    def send_banned(self, m: Inflight) -> bool:
        """Return the sender's send_ban with the overrides that `m` was given.

        Raises: StoreError.
        """
        answer = m.user_answer
        if isinstance(answer, UserAnswer) and answer.send_ban is not None:
            return answer.send_ban
        return not m.trusted and self._permissions.send_banned(m.message.from_uid)

    # --- for logins -----------------------------------------------------------------------------

    def login(
        self,
        uid: str,
        device_flag: int,
        device_id: str,
        token: str,
        peer_host: str,
        done: Callable[[LookupAnswer], None],
    ) -> None:
        """Ask about a login. The answer is kept for this uid, device flag and token."""
        steps = self.dispatcher.chain.user_get
        if not steps:
            done(None)
            return
        key = (uid, device_flag, token)
        found, kept = self._logins.find(key, steps)
        if found:
            done(kept)
            return
        self._logins.ask(
            key,
            steps,
            self.dispatcher,
            lambda steps, done: LoginLookup(
                steps,
                done,
                uid=uid,
                device_flag=device_flag,
                device_id=device_id,
                token=token,
                peer_host=peer_host,
            ),
            done,
        )

    def statistics(self) -> dict[str, dict[str, int]]:
        return {
            "channel_get": self._channels.statistics(),
            "user_get": self._users.statistics(),
            "login": self._logins.statistics(),
        }


def _not_wired(m: Inflight) -> None:
    raise AssertionError(f"{m!r} waits for a look-up, but nobody resumes it")
