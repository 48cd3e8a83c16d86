"""Reading stored messages on demand: pages of a channel, look-ups, in slices.

Source: HTTP API, `/channel/messagesync`.
"""

from __future__ import annotations

from collections import deque

import trio

from wkhost.addressing import canonical_id
from wkhost.link.contract import MessagePage, MessageRecord, SyncMessages
from wkhost.store.store import Store
from wkhost.types import Message

DEFAULT_LIMIT = 50
LIMIT_MAX = 10_000
SLICE = 64
"""Rows read in one synchronous stretch: with the largest payloads still some milliseconds."""
PAGE_BYTES_MAX = 2 * 1024 * 1024
"""Payload bytes after which a page ends; the caller asks on from there."""
_NEWEST = (1 << 64) - 1


def page_range(start: int, end: int, limit: int, pull_mode: int) -> tuple[int, int, bool]:
    """Return (first_seq, last_seq, newest) of a page; empty when first > last.

    `start` is inclusive, `end` exclusive in both directions, 0 means unset. `pull_mode` 1 goes
    up from `start`; anything else goes down from it. `newest` asks for the last `limit` of the
    range instead of the first.
    """
    if start == 0 and end == 0:
        return 1, _NEWEST, True
    if pull_mode == 1:
        return max(start, 1), end - 1 if end else _NEWEST, False
    if end > start:
        return 1, 0, False
    first = start - limit + 1
    if end:
        first = max(first, end + 1)
    return max(first, 1), start, False


async def sync_messages(store: Store, request: SyncMessages) -> MessagePage:
    """Return one page, ascending. `more` tells that the page is full.

    Raises: StoreError.
    """
    limit = min(request.limit, LIMIT_MAX) if request.limit > 0 else DEFAULT_LIMIT
    channel_id = canonical_id(request.login_uid, request.channel_id, request.channel_type)
    first, last, newest = page_range(
        request.start_message_seq, request.end_message_seq, limit, request.pull_mode
    )
    # Going down, the page keeps what is nearest to its start even if it must be cut.
    found, cut = await read_range(
        store,
        channel_id,
        request.channel_type,
        first,
        last,
        limit,
        newest_first=newest or request.pull_mode != 1,
    )
    return MessagePage([record_of(m) for m in found], more=cut or len(found) >= limit)


async def read_range(
    store: Store,
    channel_id: str,
    channel_type: int,
    first: int,
    last: int,
    limit: int,
    *,
    newest_first: bool,
) -> tuple[list[Message], bool]:
    """Return up to `limit` messages of an inclusive range, ascending, giving way between slices.

    The second value tells that the page was cut at `PAGE_BYTES_MAX` of payload.

    Raises: StoreError.
    """
    pages: deque[list[Message]] = deque()
    count = size = 0
    while first <= last and count < limit and size < PAGE_BYTES_MAX:
        wanted = min(limit - count, SLICE)
        rows = store.read_messages(channel_id, channel_type, first, last, wanted, newest_first)
        count += len(rows)
        size += sum(len(m.payload) for m in rows)
        if newest_first:
            pages.appendleft(rows)
        else:
            pages.append(rows)
        if len(rows) < wanted:
            first = last + 1
        elif newest_first:
            last = rows[0].message_seq - 1
        else:
            first = rows[-1].message_seq + 1
        await trio.lowlevel.checkpoint()
    cut = size >= PAGE_BYTES_MAX and first <= last and count < limit
    return [m for page in pages for m in page], cut


def record_of(m: Message) -> MessageRecord:
    """Return a message as the link carries it."""
    return MessageRecord(
        m.message_id,
        m.message_seq,
        m.channel_id,
        m.channel_type,
        m.from_uid,
        m.client_msg_no,
        m.payload,
        m.flags,
        m.setting,
        m.expire,
        m.topic,
        m.timestamp,
    )
