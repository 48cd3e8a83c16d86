"""What plugins print: bounded, harmless, kept."""

from __future__ import annotations

import os

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from wkhost.plugin_host import output
from wkhost.plugin_host.output import LogRing, escape, read_output, said


async def printed(data: bytes) -> LogRing:
    ring = LogRing()
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_output, reading, ring, 3, "out")
            view = memoryview(data)
            while view:
                await trio.lowlevel.wait_writable(writing)
                view = view[os.write(writing, view) :]
            os.close(writing)
    finally:
        os.close(reading)
    return ring


async def test_lines_are_kept_in_order_and_numbered() -> None:
    ring = await printed(b"one\ntwo\n\nthree")
    lines, following = ring.lines(0, 10)
    assert [line.text for line in lines] == ["one", "two", "", "three"]
    assert following == 4
    assert ring.lines(2, 10)[0][0].text == ""
    assert ring.lines(0, 2)[0][0].text == ""
    assert ring.lines(following, 10) == ([], 4)
    assert ring.last_text(3) == "three"


async def test_a_long_line_is_cut_and_the_ring_stays_bounded() -> None:
    ring = await printed(b"x" * 100_000 + b"\nend\n")
    lines, _ = ring.lines(0, 10_000)
    assert max(len(line.text) for line in lines) <= output.MAX_LINE_BYTES
    assert sum(len(line.text) for line in lines) == 100_000 + 3


async def test_a_flood_is_dropped_and_counted(autojump_clock: MockClock) -> None:
    count = 200_000
    ring = await printed(b"spam\n" * count)
    kept = len(ring.lines(0, 10**6)[0])
    assert kept <= output.MAX_KEPT_LINES
    assert ring.dropped > count / 2
    assert any("came too fast: dropped" in line.text for line in ring.lines(0, 10**6)[0])


@given(st.text())
def test_an_escaped_line_cannot_steer_a_terminal(text: str) -> None:
    shown = escape(text)
    assert all(char.isprintable() or char == "\t" for char in shown)


def test_bidi_and_ansi_are_made_visible() -> None:
    assert escape("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert escape("plain é 中") == "plain é 中"


def test_a_structured_line_is_told_in_words() -> None:
    assert (
        said('{"reason": "no such file", "event": "cannot start"}') == "cannot start: no such file"
    )
    assert said('{"traceback": "Traceback\\nKeyError: 1\\n", "event": "bad"}') == "bad: KeyError: 1"
    assert said('{"event": "a\\nb"}') == "a\\nb"
    for text in ("", "hello", "{", "{}", '{"event": 1}'):
        assert said(text) == text
