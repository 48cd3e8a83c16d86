"""Failures of many calls come in portions, each exactly once, and others get their turn between."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome
from wkhost.plugin_host.pacer import PORTION, Pacer

DEAD = Failure(Outcome.CRASH, "gone")


class Heard:
    def __init__(self) -> None:
        self.portions: list[list[int]] = []

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        self.portions.append([call_id for call_id, _ in answers])

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        raise AssertionError("nothing is reloaded here")


async def test_a_thousand_failures_leave_turns_to_others() -> None:
    heard = Heard()
    pacer = Pacer(heard)
    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        pacer.answered("a", [(number, DEAD) for number in range(1000)])
        assert [len(portion) for portion in heard.portions] == [PORTION]
        while len(seen) < 20 and sum(map(len, heard.portions)) < 1000:
            await trio.lowlevel.checkpoint()
            seen.append(len(heard.portions))
        assert sorted(number for portion in heard.portions for number in portion) == list(
            range(1000)
        )
        assert max(map(len, heard.portions)) == PORTION
        assert len(set(seen)) >= 5, "another task ran between the portions"
        nursery.cancel_scope.cancel()


async def test_the_second_portion_comes_in_the_next_turn() -> None:
    heard = Heard()
    pacer = Pacer(heard)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        for done in range(20):
            await trio.testing.wait_all_tasks_blocked()
            pacer.answered("a", [(number, DEAD) for number in range(2 * PORTION)])
            # Who of one turn goes first is random; after two, everybody has had one.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert len(heard.portions) == 2 * (done + 1)
        nursery.cancel_scope.cancel()


async def test_verdicts_and_small_batches_are_not_delayed() -> None:
    heard = Heard()
    pacer = Pacer(heard)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        pacer.answered("a", [(number, CONTINUE) for number in range(1000)])
        pacer.answered("a", [(number, DEAD) for number in range(PORTION)])
        assert [len(portion) for portion in heard.portions] == [1000, PORTION]
        nursery.cancel_scope.cancel()


async def test_what_waits_at_the_end_is_handed_on() -> None:
    heard = Heard()
    pacer = Pacer(heard)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        pacer.answered("a", [(number, DEAD) for number in range(1000)])
        nursery.cancel_scope.cancel()
    assert sum(map(len, heard.portions)) == 1000
    pacer.answered("a", [(number, DEAD) for number in range(500)])
    assert sum(map(len, heard.portions)) == 1500
