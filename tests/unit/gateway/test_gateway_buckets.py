"""Rates and shares, without sockets."""

from __future__ import annotations

import pytest

from wkhost.gateway.limits import AddressCounts, TokenBucket


def test_a_burst_of_one_second_passes_and_the_rest_has_to_wait() -> None:
    bucket = TokenBucket(frame_rate=100, byte_rate=0, now=0.0)
    assert bucket.take(100, 10**9, 0.0) == 0
    assert bucket.take(50, 0, 0.0) == pytest.approx(0.5)
    assert bucket.take(0, 0, 0.5) == 0
    assert bucket.take(10, 0, 0.6) == pytest.approx(0, abs=1e-9)


def test_the_scarcer_of_frames_and_bytes_decides() -> None:
    bucket = TokenBucket(frame_rate=10, byte_rate=1000, now=0.0)
    assert bucket.take(10, 3000, 0.0) == pytest.approx(2.0)
    assert bucket.take(30, 0, 2.0) == pytest.approx(2.0)


def test_silence_saves_up_no_more_than_a_burst() -> None:
    bucket = TokenBucket(frame_rate=10, byte_rate=0, now=0.0)
    assert bucket.take(30, 0, 1000.0) == pytest.approx(2.0)


def test_each_address_has_its_own_share() -> None:
    counts = AddressCounts(2)
    assert [counts.take("a"), counts.take("a"), counts.take("a")] == [True, True, False]
    assert counts.take("b")
    counts.release("a")
    assert counts.take("a")
    counts.release("b")
    assert "b" not in counts._counts


def test_no_limit_counts_nothing() -> None:
    counts = AddressCounts(0)
    assert all(counts.take("a") for _ in range(1000))
    counts.release("never seen")
    assert counts._counts == {}
