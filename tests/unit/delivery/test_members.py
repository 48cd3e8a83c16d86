"""Lists of members: read in slices, shared, bounded, and never stale after a change."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wkhost.delivery import members
from wkhost.delivery.members import SLICE, Loading, MemberLists
from wkhost.errors import StoreError
from wkhost.store.keys import MemberKind
from wkhost.store.records import Member


class Uids:
    """Implements `MemberReader`; counts what is read."""

    def __init__(self, *uids: str) -> None:
        self.uids = sorted(uids)
        self.limits: list[int] = []
        self.broken = False

    def list_members(
        self, kind: MemberKind, channel_id: str, channel_type: int, after_uid: str, limit: int
    ) -> Sequence[Member]:
        if self.broken:
            raise StoreError("reopening")
        self.limits.append(limit)
        return [Member(uid, 0) for uid in self.uids if uid > after_uid][:limit]


def many(count: int) -> list[str]:
    return [f"u{n:05}" for n in range(count)]


def loaded(lists: MemberLists) -> list[str]:
    found = lists.subscribers("g", 2)
    while isinstance(found, Loading):
        lists.load(found)
        if found.done:
            return found.uids
    return found


def test_a_small_list_is_read_at_once_and_kept() -> None:
    store = Uids("a", "b")
    lists = MemberLists(store)
    assert lists.subscribers("g", 2) == ["a", "b"]
    assert lists.subscribers("g", 2) == ["a", "b"]
    assert len(store.limits) == 1


@pytest.mark.parametrize("count", [SLICE - 1, SLICE, SLICE + 1, 3 * SLICE])
def test_a_large_list_is_read_in_slices(count: int) -> None:
    store = Uids(*many(count))
    lists = MemberLists(store)
    assert loaded(lists) == many(count)
    assert set(store.limits) == {SLICE}
    assert len(store.limits) == count // SLICE + 1


def test_those_who_wait_for_one_list_read_it_once() -> None:
    store = Uids(*many(2 * SLICE + 1))
    lists = MemberLists(store)
    first = lists.subscribers("g", 2)
    assert lists.subscribers("g", 2) is first
    assert loaded(lists) == many(2 * SLICE + 1)
    assert loaded(lists) == many(2 * SLICE + 1)
    assert len(store.limits) == 3


def test_a_change_while_a_list_is_read_voids_it() -> None:
    store = Uids(*many(SLICE + 1))
    lists = MemberLists(store)
    old = lists.subscribers("g", 2)
    assert isinstance(old, Loading)
    store.uids.remove("u00000")
    lists.changed("g", 2)
    new = lists.subscribers("g", 2)
    assert new is not old
    lists.load(old)
    assert old.done
    assert loaded(lists) == many(SLICE + 1)[1:], "the older reading must not be kept"


def test_a_change_voids_a_kept_list_and_only_that() -> None:
    store = Uids("a")
    lists = MemberLists(store)
    lists.subscribers("g", 2)
    lists.subscribers("h", 2)
    store.uids.append("b")
    lists.changed("g", 2)
    assert lists.subscribers("g", 2) == ["a", "b"]
    assert lists.subscribers("h", 2) == ["a"]


def test_a_store_error_leaves_the_list_to_be_read_later() -> None:
    store = Uids("a")
    store.broken = True
    lists = MemberLists(store)
    loading = lists.subscribers("g", 2)
    assert isinstance(loading, Loading)
    with pytest.raises(StoreError):
        lists.load(loading)
    store.broken = False
    assert loaded(lists) == ["a"]


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "KEPT_UIDS_MAX", 3 * (members.LIST_WEIGHT + 2))
    store = Uids("a", "b")
    lists = MemberLists(store)
    for channel_id in ("g1", "g2", "g3"):
        lists.subscribers(channel_id, 2)
    lists.subscribers("g1", 2)
    lists.subscribers("g4", 2)
    reads = len(store.limits)
    lists.subscribers("g1", 2)
    assert len(store.limits) == reads, "g1 was used last"
    lists.subscribers("g2", 2)
    assert len(store.limits) == reads + 1, "g2 had to go"


def test_empty_lists_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "KEPT_UIDS_MAX", 10 * members.LIST_WEIGHT)
    lists = MemberLists(Uids())
    for n in range(100):
        assert lists.subscribers(f"g{n}", 2) == []
    assert len(lists._kept) == 10
