"""Who belongs to a channel, read from the store in slices and kept while it does not change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from wkhost.errors import StoreError
from wkhost.store.keys import MemberKind
from wkhost.store.records import Member

SLICE = 256
"""Rows read in one synchronous stretch."""
KEPT_UIDS_MAX = 2_000_000
"""Uids kept over all channels; the channels used longest ago go first."""
LIST_WEIGHT = 4
"""A list itself counts as so many uids, so that empty ones are bounded too."""


class MemberReader(Protocol):
    """The store's read that member lists need."""

    def list_members(
        self, kind: MemberKind, channel_id: str, channel_type: int, after_uid: str, limit: int
    ) -> Sequence[Member]: ...


class Loading:
    """A list that is being read; `done` once `uids` is complete."""

    __slots__ = ("channel", "done", "uids")

    def __init__(self, channel: tuple[str, int]) -> None:
        self.channel = channel
        self.uids: list[str] = []
        self.done = False


class MemberLists:
    """Subscribers per channel. `changed` must be called when a list was changed."""

    def __init__(self, store: MemberReader) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[str, int], list[str]] = OrderedDict()
        self._kept_uids = 0
        self._loading: dict[tuple[str, int], Loading] = {}

    def subscribers(self, channel_id: str, channel_type: int) -> list[str] | Loading:
        """Return the subscribers, or what must be read on with `load`; never raises."""
        channel = (channel_id, channel_type)
        kept = self._kept.get(channel)
        if kept is not None:
            self._kept.move_to_end(channel)
            return kept
        loading = self._loading.get(channel)
        if loading is not None:
            return loading
        loading = self._loading[channel] = Loading(channel)
        try:
            self.load(loading)
        except StoreError:
            # Not lost: whoever goes on with `load` meets the store's state then.
            return loading
        return loading.uids if loading.done else loading

    def load(self, loading: Loading) -> None:
        """Read one more slice, unless others who wait for it did. Raises: StoreError."""
        if loading.done:
            return
        channel_id, channel_type = loading.channel
        after = loading.uids[-1] if loading.uids else ""
        rows = self._store.list_members(
            MemberKind.SUBSCRIBER, channel_id, channel_type, after, SLICE
        )
        loading.uids += [row.uid for row in rows]
        if len(rows) < SLICE:
            loading.done = True
            # Another one, or none, means that the list was changed meanwhile.
            if self._loading.get(loading.channel) is loading:
                del self._loading[loading.channel]
                self._keep(loading.channel, loading.uids)

    def changed(self, channel_id: str, channel_type: int) -> None:
        """Forget a channel's list; lists being read now are not kept."""
        self._loading.pop((channel_id, channel_type), None)
        old = self._kept.pop((channel_id, channel_type), None)
        if old is not None:
            self._kept_uids -= LIST_WEIGHT + len(old)

    def _keep(self, channel: tuple[str, int], uids: list[str]) -> None:
        self._kept[channel] = uids
        self._kept_uids += LIST_WEIGHT + len(uids)
        while self._kept_uids > KEPT_UIDS_MAX and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_uids -= LIST_WEIGHT + len(oldest)
