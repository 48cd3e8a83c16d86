"""Pages of a channel's history: every row of the table of `/channel/messagesync`."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from wkhost.kernel.history import LIMIT_MAX, SLICE, page_range, read_range, sync_messages
from wkhost.link.contract import SyncMessages
from wkhost.store.store import Store, open_store
from wkhost.types import Message, person_channel_id

LAST = 600
"""More than two read slices."""


class Row(NamedTuple):
    case: str
    start: int
    end: int
    limit: int
    pull_mode: int
    first: int
    last: int


ROWS = [
    Row("nothing given, down: the newest n", 0, 0, 10, 0, LAST - 9, LAST),
    Row("nothing given, up: the newest n", 0, 0, 10, 1, LAST - 9, LAST),
    Row("up from s: the first n", 100, 0, 10, 1, 100, 109),
    Row("up from s, below e", 100, 105, 10, 1, 100, 104),
    Row("up from s, e far above", 100, 500, 10, 1, 100, 109),
    Row("up, s = 0, below e", 0, 6, 10, 1, 1, 5),
    Row("up, e = s: nothing between", 100, 100, 10, 1, 0, -1),
    Row("up, e below s", 100, 50, 10, 1, 0, -1),
    Row("up beyond the last", LAST + 1, 0, 10, 1, 0, -1),
    Row("up to the last", LAST - 3, 0, 10, 1, LAST - 3, LAST),
    Row("up over read slices", 10, 0, 550, 1, 10, 559),
    Row("down, e > s: nothing", 100, 101, 10, 0, 0, -1),
    Row("down, s = 0 and e > 0: nothing", 0, 50, 10, 0, 0, -1),
    Row("down from s", 100, 0, 10, 0, 91, 100),
    Row("down from s near the start", 4, 0, 10, 0, 1, 4),
    Row("down, above e", 100, 95, 10, 0, 96, 100),
    Row("down, e = s: nothing between", 100, 100, 10, 0, 0, -1),
    Row("down, s - e > n: only n", 100, 50, 10, 0, 91, 100),
    Row("down, s - e = n", 100, 90, 10, 0, 91, 100),
    Row("down from a little beyond the last", LAST + 4, 0, 10, 0, LAST - 5, LAST),
    Row("down from far beyond the last: nothing", LAST + 100, 0, 10, 0, 0, -1),
    Row("down over read slices", 599, 0, 550, 0, 50, 599),
    Row("any other pull mode is down", 100, 0, 10, 7, 91, 100),
    Row("limit 0 is 50", 0, 0, 0, 0, LAST - 49, LAST),
    Row("limit below 0 is 50", 100, 0, -3, 1, 100, 149),
    Row("the newest over read slices", 0, 0, 590, 0, 11, LAST),
]


async def filled_store() -> Store:
    store = await open_store(None)
    channel_id = person_channel_id("a", "b")
    for seq in range(1, LAST + 1):
        store.append([Message(seq, channel_id, 1, "a", "", b"%d" % seq, 0, 0, 0, "", 1, seq, seq)])
    await store.sync()
    return store


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
async def test_a_page_is_what_the_table_says(row: Row) -> None:
    store = await filled_store()
    request = SyncMessages("a", "b", 1, row.start, row.end, row.limit, row.pull_mode)
    page = await sync_messages(store, request)
    assert [m.message_seq for m in page.messages] == list(range(row.first, row.last + 1))
    wanted = row.limit if row.limit > 0 else 50
    assert page.more is (len(page.messages) >= wanted)
    from_other_side = await sync_messages(
        store, SyncMessages("b", "a", 1, row.start, row.end, row.limit, row.pull_mode)
    )
    assert from_other_side == page


async def test_an_unknown_channel_has_an_empty_page() -> None:
    store = await filled_store()
    page = await sync_messages(store, SyncMessages("a", "nobody", 1, limit=10))
    assert (page.messages, page.more) == ([], False)


async def test_the_limit_is_capped() -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def read_messages(
            self,
            channel_id: str,
            channel_type: int,
            first: int,
            last: int,
            limit: int,
            newest: bool,
        ) -> list[Message]:
            self.asked.append(limit)
            top = min(last, 20_000)
            low = max(first, top - limit + 1)
            return [Message(s, "g", 2, "", "", b"", message_seq=s) for s in range(low, top + 1)]

    store = Counting()
    page = await sync_messages(store, SyncMessages("a", "g", 2, limit=1_000_000))  # type: ignore[arg-type]
    assert len(page.messages) == LIMIT_MAX
    assert max(store.asked) <= SLICE, "no read holds the loop for more than a slice"


def test_a_range_never_reaches_below_the_first_message() -> None:
    for start, end, limit, mode in ((0, 0, 1, 0), (3, 0, 99, 0), (0, 5, 9, 1), (1, 0, 1, 0)):
        assert page_range(start, end, limit, mode)[0] >= 1


async def test_an_empty_range_reads_nothing() -> None:
    assert await read_range(None, "g", 2, 5, 4, 10, newest_first=False) == ([], False)  # type: ignore[arg-type]
