"""Frames of answers stay within the limits of the stream and lose nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import Replace, convert
from plugin_sdk.outbox import Outbox


@given(
    st.integers(0, 3000),
    st.lists(st.sampled_from([0, 10, 1000, 200_000, 262_144, 400_000]), max_size=12),
    st.integers(0, 1500),
)
def test_every_answer_leaves_once_in_frames_within_the_limits(
    continued: int, sizes: list[int], small: int
) -> None:
    outbox = Outbox()
    first = 2**64 - continued
    outbox.continued.extend(range(first, 2**64))
    sizes = sizes + [5] * small
    for call_id, size in enumerate(sizes):
        outbox.add(convert.verdict(call_id, Replace(b"x" * size)))
    ids: list[int] = []
    while (frame := outbox.take()) is not None:
        batch = frame.verdicts
        count = len(batch.continued) + len(batch.verdicts)
        assert 1 <= count <= 1024
        assert frame.ByteSize() <= 256 * 1024 or count == 1
        ids += batch.continued
        ids += [verdict.call_id for verdict in batch.verdicts]
    assert sorted(ids) == [*range(len(sizes)), *range(first, 2**64)]
