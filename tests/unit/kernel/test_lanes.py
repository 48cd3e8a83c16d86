"""Lanes keep the order of sending, whatever the order of decisions."""

from __future__ import annotations

from wkhost.hooks.chain import EMPTY_CHAIN
from wkhost.hooks.target import SendOrigin
from wkhost.kernel.channels import CHANNELS_MAX, UNKNOWN_SEQ, ChannelState, ChannelTable
from wkhost.kernel.inflight import Inflight, Lanes, Progress, weight
from wkhost.types import Message

CHANNEL = ChannelState("g", 2)


def inflight(number: int, *, door: str = "client", sender: str = "u", size: int = 1) -> Inflight:
    message = Message(number, "g", 2, sender, "", b"")
    m = Inflight(message, SendOrigin(door), EMPTY_CHAIN, channel=CHANNEL)
    m.size = size
    return m


def test_a_decided_message_waits_for_the_earlier_ones_of_its_lane() -> None:
    left: list[int] = []
    lanes = Lanes(lambda m: left.append(m.message.message_id), 1000)
    waiting = [inflight(n) for n in range(4)]
    for m in waiting:
        lanes.enter(m, lanes.find(m))
    lanes.settle(waiting[2], Progress.READY)
    lanes.settle(waiting[1], Progress.GONE)
    assert left == []
    lanes.settle(waiting[0], Progress.READY)
    assert left == [0, 2]
    lanes.settle(waiting[3], Progress.READY)
    assert left == [0, 2, 3]
    assert len(lanes) == 0, "an empty lane does not stay"


def test_doors_and_senders_do_not_hold_each_other_back() -> None:
    left: list[int] = []
    lanes = Lanes(lambda m: left.append(m.message.message_id), 1000)
    slow = inflight(1)
    lanes.enter(slow, None)
    for m in (inflight(2, door="http"), inflight(3, sender="v"), inflight(4, door="p")):
        assert lanes.find(m) is None
        lanes.enter(m, None)
        lanes.settle(m, Progress.READY)
    assert left == [2, 3, 4]
    assert len(lanes) == 1


def test_a_lane_is_bounded_in_bytes_and_gives_them_back() -> None:
    lanes = Lanes(lambda m: None, 100)
    first = inflight(1, size=90)
    lanes.enter(first, None)
    lane = lanes.find(first)
    assert not lanes.has_room(lane, 11)
    assert lanes.has_room(lane, 10)
    lanes.settle(first, Progress.GONE)
    assert lanes.has_room(lanes.find(first), 100)


def test_an_answer_that_sends_again_into_the_lane_keeps_the_order() -> None:
    left: list[int] = []
    again = [inflight(10), inflight(11)]

    def ready(m: Inflight) -> None:
        left.append(m.message.message_id)
        if m.message.message_id == 1:
            # Decided at once: the lane is empty, left, and opened anew within `settle`.
            lanes.enter(again[0], lanes.find(again[0]))
            lanes.settle(again[0], Progress.READY)
            lanes.enter(again[1], lanes.find(again[1]))

    lanes = Lanes(ready, 1000)
    first = inflight(1)
    lanes.enter(first, None)
    lanes.settle(first, Progress.READY)
    assert left == [1, 10]
    later = inflight(12)
    lane = lanes.find(later)
    assert lane is not None, "message 11 waits: later ones must not pass it"
    lanes.enter(later, lane)
    lanes.settle(later, Progress.READY)
    assert left == [1, 10]
    lanes.settle(again[1], Progress.READY)
    assert left == [1, 10, 11, 12]
    assert len(lanes) == 0


def test_a_pinned_channel_has_one_object_however_many_others_come() -> None:
    table = ChannelTable()
    pinned = table.get("pinned", 2)
    pinned.pins = 1
    for n in range(3 * CHANNELS_MAX):
        table.get(f"g{n}", 2)
    assert table.get("pinned", 2) is pinned
    assert len(table) <= CHANNELS_MAX, "channels that only refuse must not pile up"


def test_a_channel_that_is_used_again_stays_known() -> None:
    table = ChannelTable()
    state = table.get("busy", 2)
    state.last_seq = 7
    for n in range(2 * CHANNELS_MAX):
        table.get(f"g{n}", 2)
        if n % (CHANNELS_MAX // 2) == 0:
            assert table.get("busy", 2) is state
    table.forget_sequences()
    assert state.last_seq == UNKNOWN_SEQ


def test_the_table_shrinks_again_when_messages_let_go_of_their_channels() -> None:
    table = ChannelTable()
    many = [table.get(f"p{n}", 2) for n in range(CHANNELS_MAX)]
    for state in many:
        state.pins = 1
    for n in range(1000):
        table.get(f"q{n}", 2).pins = 1
    assert all(table.get(state.channel_id, 2) is state for state in many)
    assert len(table) == CHANNELS_MAX + 1000
    for state in many:
        state.pins = 0
    for n in range(2000):
        table.get(f"r{n}", 2)
    assert len(table) == CHANNELS_MAX


def test_a_message_weighs_its_payload_its_names_and_a_fixed_part() -> None:
    empty = weight(Message(1, "", 2, "a", "", b""))
    full = weight(Message(1, "c" * 10, 2, "a", "n" * 20, b"p" * 30, topic="t" * 40))
    assert empty > 0, "empty messages must be bounded too"
    assert full == empty + 100
