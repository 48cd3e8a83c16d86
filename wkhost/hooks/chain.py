"""The chain: which plugins are asked, in which order, under which policy. One immutable snapshot.

A message keeps the snapshot under which it was admitted, so a reload, an enable or a new order
never changes the way of a message that is already on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum

import msgspec

from wkhost.hooks.records import HookLine
from wkhost.hooks.target import Target
from wkhost.hooks.verdict import Policy
from wkhost.types import Message


class Stage(IntEnum):
    """Coarse order of plugins: what guards must see first, what seals must see last."""

    GUARD = 0
    TRANSFORM = 1
    SEAL = 2
    OBSERVE = 3


class Step(msgspec.Struct, frozen=True):
    """One plugin at one hook.

    `matches` decides in the host whether a message concerns this plugin at all (None = always);
    it costs at most a microsecond and never fails.
    """

    target: Target
    policy: Policy
    matches: Callable[[Message], bool] | None = None
    hold_s: float = 2.0
    login_policy: Policy = Policy.CLOSED
    """Policy of `user_get` where the call decides a login."""


class Chain(msgspec.Struct, frozen=True):
    """All steps per hook, in order. `number` grows with every change."""

    number: int = 0
    send: tuple[Step, ...] = ()
    channel_get: tuple[Step, ...] = ()
    user_get: tuple[Step, ...] = ()
    receive: tuple[Step, ...] = ()
    persist_after: tuple[Step, ...] = ()
    webhook: tuple[Step, ...] = ()

    def lines_of(self, no: str) -> Iterator[HookLine]:
        """Yield the lines of a plugin that decides something here; some may come twice."""
        for step in (*self.send, *self.channel_get, *self.user_get):
            if step.target.no == no:
                yield from step.target.lines.values()


EMPTY_CHAIN = Chain()
