"""Rows of messages: how they are made, read and undone. Durability is `store`'s part."""

from __future__ import annotations

from collections.abc import Sequence

from wkhost.store import keys, records
from wkhost.store.engine import MAX_SCAN_ROWS, Engine, Row
from wkhost.store.reader import Reader
from wkhost.types import Message

_LAST = b"\xff" * 9
"""Above every u64 key."""
_SEGMENTS_AT_ONCE = 8
"""Log rows read at once: few, since under load each holds up to `keys.LOG_SEGMENT` messages."""


def message_rows(messages: Sequence[Message]) -> list[Row]:
    """Return the rows of `messages`: row, id and client_msg_no index each, and the log's."""
    channel, u64, encode = keys.channel, keys.u64, records.encode_message
    client_msg_no, client_value = keys.client_msg_no, keys.client_value
    rows: list[Row] = []
    put = rows.append
    message_keys: list[bytes] = []
    for m in messages:
        prefix = channel(m.channel_id, m.channel_type)
        key = prefix + u64(m.message_seq)
        message_keys.append(key)
        put((keys.MESSAGE, key, encode(m)))
        put((keys.MESSAGE_ID, u64(m.message_id), key))
        if m.client_msg_no:
            put(
                (
                    keys.CLIENT_MSG_NO,
                    client_msg_no(prefix, m.client_msg_no, m.from_uid),
                    client_value(m.message_id, m.message_seq, m.log_pos),
                )
            )
    for first in range(0, len(message_keys), keys.LOG_SEGMENT):
        segment = message_keys[first : first + keys.LOG_SEGMENT]
        last_log_pos = messages[first + len(segment) - 1].log_pos
        put((keys.LOG, u64(last_log_pos), records.encode(records.LogRow(segment))))
    return rows


class MessageReader(Reader):
    """Reads of messages. Only durable messages are told, except by `last_seq`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._durable_log_pos = 0
        self._last_log_pos = 0

    @property
    def durable_log_pos(self) -> int:
        """The log_pos up to which every message is known to be on disk; 0 when empty."""
        return self._durable_log_pos

    def last_log_pos(self) -> int:
        """Return the log_pos of the newest message written, durable or not; 0 when empty."""
        return self._last_log_pos

    def last_seq(self, channel_id: str, channel_type: int) -> int:
        """Return the greatest message_seq written in the channel, durable or not; 0 when empty."""
        prefix = keys.channel(channel_id, channel_type)
        rows = self._scan(keys.MESSAGE, prefix, prefix + _LAST, 1, reverse=True)
        return keys.split_message_key(rows[0][0])[2] if rows else 0

    def read_messages(
        self,
        channel_id: str,
        channel_type: int,
        first_seq: int,
        last_seq: int,
        limit: int,
        newest_first: bool = False,
    ) -> list[Message]:
        """Return messages with first_seq <= message_seq <= last_seq, ascending.

        At most `limit` of them, and never more than `MAX_SCAN_ROWS`: the lowest, or with
        `newest_first` the highest. Ask again beyond the last for more.
        """
        prefix = keys.channel(channel_id, channel_type)
        start = prefix + keys.u64(_clamped(first_seq))
        end = keys.after(prefix + keys.u64(_clamped(last_seq)))
        rows = self._scan(keys.MESSAGE, start, end, limit, newest_first)
        while newest_first:
            rows.reverse()
            if not rows or self._is_durable(rows[-1][1]):
                break
            # The newest are not durable yet: look below them.
            first = next(key for key, value in rows if not self._is_durable(value))
            rows = self._scan(keys.MESSAGE, start, first, limit, True)
        decode, seq_of = records.decode_message_of, keys.seq_of
        found = [decode(channel_id, channel_type, seq_of(key), value) for key, value in rows]
        while found and found[-1].log_pos > self._durable_log_pos:
            found.pop()
        return found

    def message_by_id(self, message_id: int) -> Message | None:
        """Return the durable message with this id, or None."""
        if not 0 <= message_id <= keys.MAX_U64:
            return None
        key = self._get(keys.MESSAGE_ID, keys.u64(message_id))
        return None if key is None else self._message(key)

    def find_client_msg_no(
        self, channel_id: str, channel_type: int, from_uid: str, client_msg_no: str
    ) -> tuple[int, int] | None:
        """Return (message_id, message_seq) of the sender's durable message, or None."""
        prefix = keys.channel(channel_id, channel_type)
        value = self._get(keys.CLIENT_MSG_NO, keys.client_msg_no(prefix, client_msg_no, from_uid))
        if value is None:
            return None
        message_id, message_seq, log_pos = keys.split_client_value(value)
        return (message_id, message_seq) if log_pos <= self._durable_log_pos else None

    def messages_by_client_msg_no(
        self, channel_id: str, channel_type: int, client_msg_no: str
    ) -> list[Message]:
        """Return the channel's durable messages with this number, whoever sent them.

        Ascending message_seq; at most `MAX_SCAN_ROWS` senders are looked at.
        """
        channel_key = keys.channel(channel_id, channel_type)
        prefix = keys.client_msg_no(channel_key, client_msg_no, "")
        rows = self._scan(keys.CLIENT_MSG_NO, prefix, keys.prefix_end(prefix), MAX_SCAN_ROWS)
        seqs = sorted(keys.split_client_value(value)[1] for _, value in rows)
        found = (self._message(channel_key + keys.u64(seq)) for seq in seqs)
        return [m for m in found if m is not None]

    def read_log(self, after_pos: int, limit: int) -> list[Message]:
        """Return the durable messages with log_pos > after_pos in commit order, without a gap.

        At most `limit`, and never more than `MAX_SCAN_ROWS`; empty when there is nothing newer.
        """
        after_pos = max(after_pos, 0)
        limit = min(limit, MAX_SCAN_ROWS, self._durable_log_pos - after_pos)
        if limit <= 0:
            return []
        wanted: list[bytes] = []
        pos = after_pos
        while len(wanted) < limit:
            few = min(_SEGMENTS_AT_ONCE, limit - len(wanted))
            rows = self._scan(keys.LOG, keys.u64(pos + 1), _LAST, few)
            if not rows:
                break
            for key, value in rows:
                segment = records.decode_log(value)
                last = keys.log_pos_of(key)
                wanted += segment[max(0, pos - last + len(segment)) :]
                pos = last
        found = [self._message(key) for key in wanted[:limit]]
        return [m for m in found if m is not None]

    def _message(self, key: bytes) -> Message | None:
        value = self._get(keys.MESSAGE, key)
        if value is None:
            return None
        message = records.decode_message(key, value)
        return message if message.log_pos <= self._durable_log_pos else None

    def _is_durable(self, row: bytes) -> bool:
        return records.log_pos_of(row) <= self._durable_log_pos

    def _newest_log_pos(self) -> int:
        rows = self._engine.scan(keys.LOG, b"", _LAST, 1, reverse=True)
        return keys.log_pos_of(rows[0][0]) if rows else 0

    def _rows_to_undo(self, after_pos: int) -> list[Row]:
        """Return the deletions of the newest log row's messages, if it is above `after_pos`.

        Undoing from the newest down leaves a log without a gap whenever it is interrupted.
        """
        engine = self._engine
        rows: list[Row] = []
        for log_key, value in engine.scan(
            keys.LOG, keys.u64(after_pos + 1), _LAST, 1, reverse=True
        ):
            for key in records.decode_log(value):
                row = engine.get(keys.MESSAGE, key)
                if row is not None:
                    rows += _undo(key, records.decode_message(key, row))
            rows.append((keys.LOG, log_key, None))
        return rows

    def _check_log_pos(self, messages: Sequence[Message]) -> None:
        expected = self._last_log_pos
        for m in messages:
            expected += 1
            if m.log_pos != expected:
                raise ValueError(f"log_pos {m.log_pos}: expected {expected}")


def _clamped(number: int) -> int:
    return min(max(number, 0), keys.MAX_U64)


def _undo(key: bytes, m: Message) -> list[Row]:
    rows: list[Row] = [(keys.MESSAGE, key, None), (keys.MESSAGE_ID, keys.u64(m.message_id), None)]
    if m.client_msg_no:
        index = keys.client_msg_no(key[:-8], m.client_msg_no, m.from_uid)
        rows.append((keys.CLIENT_MSG_NO, index, None))
    return rows
