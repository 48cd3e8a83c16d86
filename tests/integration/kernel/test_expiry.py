"""Expired rows lose their space in the store."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.kit.kernel import running_kernel
from wkhost.store import keys, mutations


async def test_expired_rows_are_removed_and_living_ones_stay(autojump_clock: MockClock) -> None:
    async with running_kernel() as k:
        now_ms = k.clock.wall_ms()
        rows = []
        for i in range(600):
            rows += mutations.put_cache(b"gone%d" % i, b"x", now_ms - 1)
        rows += mutations.put_cache(b"stays", b"x", now_ms + 3_600_000)
        rows += mutations.put_plugin_value("p", "stays", b"x", 1)
        k.store.write(rows)
        await trio.sleep(61)
        assert k.kernel.statistics()["expired_rows_removed"] == 600
        assert k.store.cached(b"stays", now_ms) == b"x"
        assert k.store.plugin_value("p", "stays", now_ms) is not None
        for family in (keys.CACHE, keys.PLUGIN):
            assert k.store.expired_rows(family, now_ms) == ([], None)
