"""Random traffic through a whole kernel against a model: order, ids, answers, nothing left over."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.kernel import KernelKit, running_kernel
from tests.kit.targets import ManualTarget
from wkhost.addressing import canonical_id
from wkhost.errors import ReasonCode, StoreError
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.target import Answer, ChannelAnswer, ChannelGetCall, UserAnswer, UserGetCall
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse, Replace
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import AddSubscribers, SendMessage, Sent, Subscriber
from wkhost.types import Flags

SUCCESS = ReasonCode.SUCCESS
SENDERS = ("a", "b", "c")
CHANNELS = (("b", 1), ("a", 1), ("g", 2), ("h", 2), ("info", 6))
"""As the sender calls them; nobody is a member of "h"."""
DOORS = ("client", "http", "p0")
POLICIES = (Policy.CLOSED, Policy.OPEN, Policy.HOLD)


class DoSend(NamedTuple):
    door: str
    sender: str
    channel: int
    number: int
    """0: without a client_msg_no; else one of a few, so that repeats happen."""
    no_persist: bool


class DoAnswer(NamedTuple):
    plugin: int
    which: int
    verdict: str


class DoChain(NamedTuple):
    plugins: tuple[int, ...]
    lookups: bool


class DoSwitch(NamedTuple):
    plugin: int
    ready: bool
    room: bool


class DoWait(NamedTuple):
    seconds: float


class DoReconnect(NamedTuple):
    sender: str


class DoFail(NamedTuple):
    syncs: int


Deed = DoSend | DoAnswer | DoChain | DoSwitch | DoWait | DoReconnect | DoFail

SENDS = st.builds(
    DoSend,
    st.sampled_from(DOORS),
    st.sampled_from(SENDERS),
    st.integers(0, len(CHANNELS) - 1),
    st.sampled_from((0, 0, 1, 2)),
    st.sampled_from((False, False, False, True)),
)
ANSWERS = st.builds(
    DoAnswer,
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from(("continue", "continue", "replace", "refuse", "crash")),
)
CHAINS = st.builds(
    DoChain, st.lists(st.integers(0, 2), unique=True, max_size=3).map(tuple), st.booleans()
)
DEEDS = st.lists(
    st.one_of(
        SENDS,
        SENDS,
        SENDS,
        ANSWERS,
        ANSWERS,
        ANSWERS,
        CHAINS,
        st.builds(DoSwitch, st.integers(0, 2), st.booleans(), st.booleans()),
        st.builds(DoWait, st.sampled_from((0.0, 0.0, 0.06, 0.3, 1.1))),
        st.builds(DoReconnect, st.sampled_from(SENDERS)),
        st.builds(DoFail, st.integers(1, 2)),
    ),
    min_size=25,
    max_size=90,
)


class Record:
    """One send that was given to the kernel, and what came back."""

    def __init__(self, index: int, deed: DoSend) -> None:
        self.index = index
        self.deed = deed
        channel_id, channel_type = CHANNELS[deed.channel]
        self.channel = (canonical_id(deed.sender, channel_id, channel_type), channel_type)
        self.lane = (deed.door, deed.sender, self.channel)
        self.answers: list[tuple[int, int, int]] = []
        """(message_id, message_seq, reason_code)."""

    @property
    def reason(self) -> int:
        return self.answers[0][2]


class World:
    """The kernel, its plugins, and everything that was sent."""

    def __init__(self, k: KernelKit, clock: trio.testing.MockClock) -> None:
        self.k = k
        self.clock = clock
        self.plugins = [ManualTarget(f"p{n}", k.kernel) for n in range(3)]
        self.records: list[Record] = []
        self.waiting: dict[tuple[int, int], Record] = {}
        self.conns = {uid: k.connect(uid) for uid in SENDERS}
        self.watchers = {uid: k.connect(uid, device_flag=1) for uid in (*SENDERS, "w")}
        self.chain_numbers = itertools.count(1)
        self.failing_syncs = 0
        self._sync = k.store._engine.sync
        k.store._engine.sync = self._failing_sync  # type: ignore[method-assign]

    async def _failing_sync(self) -> None:
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise StoreError("the disk is on fire")
        await self._sync()

    def send(self, deed: DoSend) -> None:
        if deed.door == "client" and self.conns[deed.sender] not in self.k.kernel.presence.by_conn:
            # Its login met a store that was reopening: it was closed and comes back.
            self.reconnect(deed.sender)
            return
        record = Record(len(self.records), deed)
        self.records.append(record)
        channel_id, channel_type = CHANNELS[deed.channel]
        payload = b'"%d"' % record.index
        number = f"n{deed.number}" if deed.number else ""
        flags = Flags.NO_PERSIST if deed.no_persist else 0
        if deed.door == "client":
            conn = self.conns[deed.sender]
            seq = self.k.send(
                conn,
                channel_id,
                payload,
                channel_type=channel_type,
                client_msg_no=number,
                flags=flags,
            )
            self.waiting[conn, seq] = record
            return

        def done(sent: Sent) -> None:
            record.answers.append((sent.message_id, sent.message_seq, sent.reason_code))

        request = SendMessage(deed.sender, channel_id, channel_type, payload, number, flags)
        self.k.kernel.service.send_nowait(request, done, door=deed.door)

    def answer(self, deed: DoAnswer) -> None:
        plugin = self.plugins[deed.plugin]
        if not plugin.calls:
            return
        index = deed.which % len(plugin.calls)
        call = plugin.calls[index]
        answer: Answer
        match deed.verdict:
            case "continue":
                answer = CONTINUE
            case "crash":
                answer = Failure(Outcome.CRASH)
            case "replace" if isinstance(call, ChannelGetCall):
                answer = ChannelAnswer(ban=False, ttl_s=0.2)
            case "refuse" if isinstance(call, ChannelGetCall):
                answer = ChannelAnswer(ban=True)
            case "replace" if isinstance(call, UserGetCall):
                answer = UserAnswer(send_ban=False, ttl_s=0.2)
            case "refuse" if isinstance(call, UserGetCall):
                answer = UserAnswer(send_ban=True)
            case "replace":
                assert not isinstance(call, ChannelGetCall | UserGetCall)
                answer = Replace(call.message.payload[:-1] + b'!"')
            case _:
                answer = Refuse(70)
        plugin.answer(answer, index)

    def change_chain(self, deed: DoChain) -> None:
        steps = tuple(Step(self.plugins[n], POLICIES[n]) for n in deed.plugins)
        asked = (Step(self.plugins[1], Policy.OPEN), Step(self.plugins[0], Policy.CLOSED))
        lookups = asked if deed.lookups else ()
        self.k.kernel.chain_changed(
            Chain(next(self.chain_numbers), send=steps, channel_get=lookups, user_get=lookups[:1])
        )

    def reconnect(self, uid: str) -> None:
        self.k.kernel.closed([self.conns[uid]])
        chain = self.k.kernel._dispatcher.chain
        self.k.kernel.chain_changed(Chain(next(self.chain_numbers)))
        self.conns[uid] = self.k.connect(uid)
        self.k.kernel.chain_changed(chain)

    async def do(self, deed: Deed) -> None:
        match deed:
            case DoSend():
                self.send(deed)
            case DoAnswer():
                self.answer(deed)
            case DoChain():
                self.change_chain(deed)
            case DoSwitch():
                plugin = self.plugins[deed.plugin]
                plugin.ready, plugin.room = deed.ready, deed.room
            case DoReconnect():
                self.reconnect(deed.sender)
            case DoFail():
                self.failing_syncs = deed.syncs
            case DoWait():
                await self.pass_time(deed.seconds)

    async def pass_time(self, seconds: float) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self.clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self) -> None:
        """Let everything come to its end."""
        self.failing_syncs = 0
        # Nobody answers any more: time and policies alone must end everything.
        for _ in range(40):
            await self.pass_time(0.2)
        for conn, acks in self.k.outbox.acks.items():
            for ack in acks:
                record = self.waiting[conn, ack.client_seq]
                record.answers.append((ack.message_id, ack.message_seq, ack.reason_code))


async def play(chain: DoChain, deeds: Sequence[Deed], clock: trio.testing.MockClock) -> None:
    # No retries: what is received here is delivered for the first time.
    async with running_kernel(KernelSettings(retry_interval_s=1e9, retry_scan_s=1e6)) as k:
        await k.change(AddSubscribers("g", 2, [Subscriber(uid) for uid in (*SENDERS, "w")]))
        await k.change(AddSubscribers("info", 6, [Subscriber("w")]))
        world = World(k, clock)
        for deed in (chain, *deeds):
            await world.do(deed)
        await world.finish()
        check_answers(world)
        check_storage(world)
        check_delivery(world)
        check_nothing_is_left(k)


def index_of(payload: bytes) -> int:
    return int(payload.strip(b'"!'))


def check_answers(world: World) -> None:
    groups = defaultdict(list)
    for record in world.records:
        assert len(record.answers) == 1, f"{record.deed} was answered {len(record.answers)} times"
        message_id, seq, reason = record.answers[0]
        if reason != SUCCESS:
            assert seq == 0
        elif record.deed.number:
            key = (record.channel, record.deed.sender, record.deed.number)
            groups[key].append((message_id, seq))
    for key, ids in groups.items():
        assert len(set(ids)) == 1, f"repeats of {key} got {ids}"


def check_storage(world: World) -> None:
    store = world.k.store
    stored: dict[int, tuple[int, int]] = {}
    for channel in {record.channel for record in world.records}:
        messages = store.read_messages(*channel, 1, 1 << 40, 256)
        assert [m.message_seq for m in messages] == list(range(1, len(messages) + 1))
        lanes = defaultdict(list)
        for m in messages:
            record = world.records[index_of(m.payload)]
            assert record.channel == channel
            stored[m.message_id] = (record.index, m.message_seq)
            lanes[record.lane].append(record.index)
        for lane, indices in lanes.items():
            assert indices == sorted(indices), f"{lane} is stored out of order"
    assert store.last_log_pos() == store.durable_log_pos == len(stored)
    answered = {}
    for record in world.records:
        message_id, seq, reason = record.answers[0]
        if reason == SUCCESS and seq:
            answered[message_id] = seq
        elif reason != SUCCESS:
            assert record.index not in {index for index, _ in stored.values()}
    assert answered == {message_id: seq for message_id, (_, seq) in stored.items()}


def check_delivery(world: World) -> None:
    accepted = {
        record.answers[0][0]: record for record in world.records if record.reason == SUCCESS
    }
    for uid, conn in world.watchers.items():
        got = world.k.received(conn)
        lanes, seqs = defaultdict(list), defaultdict(list)
        for recv in got:
            record = world.records[index_of(recv.payload)]
            assert record.reason == SUCCESS, "refused, and delivered all the same"
            assert recv.message_id == record.answers[0][0]
            lanes[record.lane].append(record.index)
            if recv.message_seq:
                seqs[record.channel].append(recv.message_seq)
        for lane, indices in lanes.items():
            assert indices == sorted(set(indices)), f"{lane} reached {uid} out of order"
        for channel, numbers in seqs.items():
            assert numbers == sorted(set(numbers)), f"{channel} reached {uid} out of order"
        expected = {
            message_id
            for message_id, record in accepted.items()
            if uid in recipients(record.channel)
        }
        assert {recv.message_id for recv in got} == expected


def recipients(channel: tuple[str, int]) -> set[str]:
    channel_id, channel_type = channel
    if channel_type == 1:
        return set(channel_id.split("@"))
    return {"g": {*SENDERS, "w"}, "info": {"w"}}.get(channel_id, set())


def check_nothing_is_left(k: KernelKit) -> None:
    parts = k.kernel.statistics()
    assert parts["send"]["inflight_bytes"] == 0
    assert parts["send"]["inflight_numbers"] == 0
    assert parts["send"]["lanes"] == 0
    assert parts["hooks"]["open_calls"] == 0
    assert not parts["hooks"]["held"]
    assert parts["commit"]["queued"] == 0
    assert parts["commit"]["healthy"]
    assert parts["fanout"]["waiting_messages"] == 0
    assert {cache["asking"] for cache in parts["lookups"].values()} == {0}
    for state in k.kernel._channels._states.values():
        assert state.pins == 0, state
    for session in k.kernel.presence.by_conn.values():
        assert session.inflight_bytes == 0, session


@settings(max_examples=40, deadline=None)
@given(chain=CHAINS, deeds=DEEDS)
def test_whatever_happens_order_ids_and_answers_hold_and_nothing_leaks(
    chain: DoChain, deeds: list[Deed]
) -> None:
    clock = trio.testing.MockClock()
    trio.run(play, chain, deeds, clock, clock=clock)
