"""What plugins print: read with bounds, made harmless, kept as the last lines of each plugin.

Lines of a plugin and lines of the host about it share one ring but not one form: the host writes
the head of every line, and a plugin's text cannot leave its own line.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque

import msgspec
import trio

from wkhost.plugin_host.pace import Pace

MAX_LINE_BYTES = 8 * 1024
MAX_KEPT_LINES = 2000
MAX_KEPT_BYTES = 1024 * 1024
BYTES_PER_S = 256 * 1024
"""A plugin that prints faster is read slower: its own writes block, nobody else pays."""
BURST_BYTES = 1024 * 1024
LINES_PER_S = 500
BURST_LINES = 2000
"""Lines beyond this are counted and dropped."""
HOST_STREAM = "host"


class Line(msgspec.Struct, frozen=True, gc=False):
    """`number` counts all lines of the plugin from 1; `stream` is out, err or host."""

    number: int
    time: float
    generation: int
    stream: str
    text: str

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.time))
        return f"{at}Z g{self.generation} {self.stream:<4} {self.text}"


class LogRing:
    """The last lines of one plugin, over all its generations."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self._next = 1
        self.added = 0
        """Lines that were kept, for a while at least."""
        self.dropped = 0
        """Lines that came too fast and were not kept."""

    def add(self, generation: int, stream: str, text: str) -> None:
        self._lines.append(Line(self._next, time.time(), generation, stream, text))
        self._next += 1
        self.added += 1
        self._bytes += len(text)
        while len(self._lines) > MAX_KEPT_LINES or self._bytes > MAX_KEPT_BYTES:
            self._bytes -= len(self._lines.popleft().text)

    def lines(self, after: int, limit: int) -> tuple[list[Line], int]:
        """Return up to `limit` lines after number `after` and the number to ask after next.

        `after` 0 gives the newest `limit` lines, any other the oldest after it.
        """
        limit = max(0, limit)
        if after == 0:
            found = list(self._lines)[max(0, len(self._lines) - limit) :]
        else:
            found = [line for line in self._lines if line.number > after][:limit]
        return found, found[-1].number if found else max(after, self._next - 1)

    def last_texts(self, count: int) -> list[str]:
        """Return the last lines that the plugin printed, oldest first."""
        own = [line for line in self._lines if line.stream != HOST_STREAM and line.text.strip()]
        return [line.text[:500] for line in own[-count:]]

    def last_text(self, generation: int) -> str:
        """Return the last line that the generation's process printed, or an empty text."""
        for line in reversed(self._lines):
            if line.generation == generation and line.stream != HOST_STREAM and line.text.strip():
                return line.text
        return ""


class _Lines:
    """Cuts what one stream brings into lines for the ring; what comes too fast is only counted."""

    def __init__(self, ring: LogRing, generation: int, stream: str) -> None:
        self._ring = ring
        self._generation = generation
        self._stream = stream
        self._pace = Pace(BURST_LINES, LINES_PER_S)
        self._rest = b""
        self._dropped = 0

    def feed(self, data: bytes) -> None:
        allowed = self._pace.left(trio.current_time())
        *lines, rest = (self._rest + data).split(b"\n", allowed)
        if len(lines) == allowed:
            # A flood must not cost a step per line.
            self._drop(rest.count(b"\n"))
            rest = rest[rest.rfind(b"\n") + 1 :]
        if len(rest) > MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            self._keep(line)

    def end(self) -> None:
        if self._rest:
            self._keep(self._rest)
        self._tell_dropped()

    def _keep(self, line: bytes) -> None:
        self._tell_dropped()
        for at in range(0, max(1, len(line)), MAX_LINE_BYTES):
            part = line[at : at + MAX_LINE_BYTES]
            self._pace.take(trio.current_time())
            self._ring.add(self._generation, self._stream, escape(part.decode("utf-8", "replace")))

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._ring.dropped += count

    def _tell_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped} lines of {self._stream} came too fast: dropped"
            self._ring.add(self._generation, HOST_STREAM, text)
            self._dropped = 0


async def read_output(descriptor: int, ring: LogRing, generation: int, stream: str) -> None:
    """Read a non-blocking descriptor to its end, line by line, into `ring`."""
    pace = Pace(BURST_BYTES, BYTES_PER_S)
    lines = _Lines(ring, generation, stream)
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        try:
            data = os.read(descriptor, 64 * 1024)
        except BlockingIOError:
            continue
        if not data:
            lines.end()
            return
        lines.feed(data)
        await trio.sleep(pace.take(trio.current_time(), len(data)))


def said(text: str) -> str:
    """Return a line of the SDK's structured log as words, any other line as it is."""
    if not text.startswith("{"):
        return text
    try:
        fields = json.loads(text)
    except ValueError:
        return text
    event = fields.get("event")
    if not isinstance(event, str):
        return text
    why = fields.get("reason") or str(fields.get("traceback", "")).rstrip().rpartition("\n")[2]
    return escape(f"{event}: {why}" if why else event)


def escape(text: str) -> str:
    """Return `text` with everything that could steer a terminal or fake a line made visible."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text.rstrip("\r")
    )
