"""Keys sort as documented, records keep what they are given, damage is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.errors import StoreError
from wkhost.store import keys, records
from wkhost.types import ChannelInfo, DeviceRecord, Message

text = st.text(max_size=40)
u64 = st.integers(0, keys.MAX_U64)


@given(u64, u64)
def test_numbers_sort_as_numbers(a: int, b: int) -> None:
    assert (keys.u64(a) < keys.u64(b)) == (a < b)


@given(text, st.integers(0, 255), u64)
def test_a_message_key_tells_its_parts(channel_id: str, channel_type: int, seq: int) -> None:
    key = keys.channel(channel_id, channel_type) + keys.u64(seq)
    assert keys.split_message_key(key) == (channel_id, channel_type, seq)
    assert keys.seq_of(key) == seq


@given(text, text, st.integers(0, 255), st.integers(0, 255))
def test_no_channel_is_the_prefix_of_another(a: str, b: str, type_a: int, type_b: int) -> None:
    first, second = keys.channel(a, type_a), keys.channel(b, type_b)
    assert second.startswith(first) == ((a, type_a) == (b, type_b))


@given(st.binary(max_size=8).filter(lambda p: p.strip(b"\xff") != b""), st.binary(max_size=8))
def test_prefix_end_is_above_all_with_the_prefix_and_tight(prefix: bytes, rest: bytes) -> None:
    end = keys.prefix_end(prefix)
    assert prefix + rest < end
    assert (prefix <= rest < end) == rest.startswith(prefix)


@given(
    st.builds(
        Message,
        message_id=u64,
        channel_id=text,
        channel_type=st.integers(0, 255),
        from_uid=text,
        client_msg_no=text,
        payload=st.binary(max_size=60),
        flags=st.integers(0, 15),
        setting=st.integers(0, 255),
        expire=st.integers(0, 2**32),
        topic=text,
        timestamp=st.integers(0, 2**33),
        message_seq=u64,
        log_pos=u64,
        hop=st.integers(0, 9),
    )
)
def test_a_message_row_keeps_every_field(message: Message) -> None:
    key = keys.channel(message.channel_id, message.channel_type) + keys.u64(message.message_seq)
    row = records.encode_message(message)
    assert records.decode_message(key, row) == message
    assert records.log_pos_of(row) == message.log_pos
    assert row[1] == 1, "the second byte is the version of the record"


def test_small_records_keep_their_fields() -> None:
    info = ChannelInfo(ban=True, allow_stranger=True)
    assert records.decode_channel(records.encode_channel(info)) == info
    device = records.encode(records.DeviceRow("t", 1))
    assert records.decode_device(device) == DeviceRecord("t", 1)


@pytest.mark.parametrize("row", [b"", b"\x92", b"\x92\x63\x01", b"\xff"])
def test_a_row_of_unknown_version_or_shape_is_a_store_error(row: bytes) -> None:
    for decode in (
        records.decode_log,
        records.decode_channel,
        records.decode_role,
        records.decode_device,
        records.decode_plugin_value,
        records.decode_cache,
        records.log_pos_of,
    ):
        with pytest.raises(StoreError, match="cannot be read"):
            decode(row)
