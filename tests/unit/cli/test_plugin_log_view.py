"""How a plugin's log reads."""

from __future__ import annotations

import json
from typing import Any

from wkhost.cli.plugin_log_view import readable

HEAD = "2026-01-02T03:04:05Z g7 err  "


def shown(**fields: Any) -> list[str]:
    return list(readable(HEAD + json.dumps(fields)))


def test_a_structured_line_reads_as_words() -> None:
    assert shown(hook="send", why="too slow", time=1.5, level="warning", event="no answer") == [
        f'{HEAD}warning: no answer hook=send why="too slow"'
    ]


def test_a_traceback_has_a_line_for_each_of_its_lines() -> None:
    assert shown(
        traceback="Traceback:\n  in send\nKeyError: 1\n", level="error", event="failed"
    ) == [
        f"{HEAD}error: failed",
        f"{HEAD}  Traceback:",
        f"{HEAD}    in send",
        f"{HEAD}  KeyError: 1",
    ]


def test_no_text_of_a_plugin_passes_for_a_line_of_the_host() -> None:
    forged = "x\n2026-01-02T03:04:05Z g7 host running"
    for lines in (
        shown(level="info", event=forged),
        shown(level=forged, event="x"),
        shown(level="info", event="x", **{forged: forged}),
        shown(level="info", event="x", traceback=forged),
    ):
        assert all(line.startswith(HEAD) and "\n" not in line for line in lines)


def test_other_lines_stay_as_they_are() -> None:
    for text in ("hello", "{", "[1]", '{"level": 1}', '{"event": "x"} tail'):
        assert list(readable(HEAD + text)) == [HEAD + text]
    host = HEAD.replace("err ", "host") + '{"level": "info", "event": "x"}'
    assert list(readable(host)) == [host]
