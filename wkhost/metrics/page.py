"""Writes docs/metrics.md: `python -m wkhost.metrics.page > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from wkhost.metrics.definitions import GUIDE, PLUGINS, PROCESS, SERVER, Metric

_HEAD = """\
# Metrics

This page is written by `python -m wkhost.metrics.page`; a test keeps it equal to the code.

`GET /metrics` on the address of `manager.addr` (port 5300 by default) answers in the classic text
format of Prometheus, without a token. `manager.on: false` closes the port. The numbers are gathered
by the server when somebody asks and written by the API worker, so that a scrape costs the message
path next to nothing; on the way of a message they are plain integers.

Label values come from sets that the server knows, never from what a client or a plugin says: a
plugin's number, its hook and its version are those of installed manifests, and a target is an entry
of a granted allow-list, not the name that was asked for. At most eight versions of a plugin are
kept.
"""

_PARTS: tuple[tuple[str, str, Iterable[Metric]], ...] = (
    ("Names of the guide", "Always there, from the first scrape on, at 0 if need be.", GUIDE),
    ("The server", "The way of a message, the store and the sockets.", SERVER),
    (
        "Plugins",
        "Per plugin, and per plugin, hook and version. See [plugin operations]"
        "(plugin-operations.md) for what the states mean.",
        PLUGINS,
    ),
    (
        "The process",
        "The usual names, and those that existing charts ask for.",
        PROCESS,
    ),
)


def _rows(metrics: Iterable[Metric]) -> Iterator[str]:
    yield "| name | type | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def render() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, text, metrics in _PARTS:
        parts.append("\n".join((f"## {title}", "", text, "", *_rows(metrics), "")))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
