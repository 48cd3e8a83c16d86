"""A plugin that prints as fast as it can: bounded, counted, told, and nobody else waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import trio

from wkhost.plugin_host.output import (
    BURST_LINES,
    HOST_STREAM,
    LINES_PER_S,
    MAX_KEPT_BYTES,
    MAX_KEPT_LINES,
    LogRing,
    read_output,
)

LINES = 60_000
FLOOD = f"""
import sys
for n in range({LINES}):
    sys.stdout.write("x%d\\n" % n)
"""
WIDE = """
import os
os.write(1, b"\\x1b[2Jno newline " + b"y" * 300_000)
os.write(1, b"\\nhost     fake line\\u202e\\n")
"""


async def read_all(code: str, ring: LogRing) -> None:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 - as the host does
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        os.set_blocking(descriptor, False)
        await read_output(descriptor, ring, 1, "out")


async def test_a_flood_is_cut_to_its_rate_and_every_line_is_accounted_for() -> None:
    ring = LogRing()
    worst = 0.0
    start = trio.current_time()

    async def feel() -> None:
        nonlocal worst
        while True:
            before = trio.current_time()
            await trio.sleep(0.001)
            worst = max(worst, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feel)
        await read_all(FLOOD, ring)
        nursery.cancel_scope.cancel()
    seconds = trio.current_time() - start
    lines, _ = ring.lines(0, 10 * LINES)
    told = [line.text for line in lines if line.stream == HOST_STREAM]
    assert len(lines) <= MAX_KEPT_LINES
    assert sum(len(line.text) for line in lines) <= MAX_KEPT_BYTES
    assert ring.dropped > LINES / 2
    matches = [re.fullmatch(r"(\d+) lines of out came too fast: dropped", text) for text in told]
    counts = [int(match.group(1)) for match in matches if match is not None]
    assert len(counts) == len(told)
    assert sum(counts) == ring.dropped, "the log itself tells how many were dropped"
    assert ring.added - len(told) + ring.dropped == LINES
    assert ring.added - len(told) <= BURST_LINES + LINES_PER_S * (seconds + 1)
    assert worst < 0.25, "the loop stays free"


async def test_output_cannot_steer_a_terminal_or_pass_for_a_line_of_the_host() -> None:
    ring = LogRing()
    await read_all(WIDE, ring)
    lines, _ = ring.lines(0, 1000)
    assert all(str(line).isprintable() for line in lines)
    assert all(len(line.text) <= 4 * 8192 for line in lines)
    assert {line.stream for line in lines} == {"out"}
