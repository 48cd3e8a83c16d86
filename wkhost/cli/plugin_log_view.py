"""Lines of a plugin's log as people read them: structured ones as words, tracebacks as lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_LINE = re.compile(r"(\S+Z g\d+ (?:out|err) +)(\{.*\})")
"""The head that the host writes, and the JSON of the SDK's log."""


def readable(line: str) -> Iterator[str]:
    """Yield the lines to show for one line of the log.

    Every one begins with the host's head of the line, so a plugin's text cannot pass for another's.
    """
    match = _LINE.fullmatch(line)
    fields = _fields(match[2]) if match else None
    if match is None or fields is None:
        yield line
        return
    head = match[1]
    level, event = fields.pop("level"), fields.pop("event")
    trace = fields.pop("traceback", "")
    fields.pop("time", None)
    rest = "".join(f" {name}={_value(value)}" for name, value in fields.items())
    yield f"{head}{' '.join(f'{level}: {event}{rest}'.splitlines())}"
    for part in str(trace).splitlines():
        yield f"{head}  {part}"


def _fields(text: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and {"level", "event"} <= fields.keys() else None


def _value(value: Any) -> str:
    if isinstance(value, str) and value and not re.search(r"[\s=\"]", value):
        return value
    return json.dumps(value, ensure_ascii=False)
