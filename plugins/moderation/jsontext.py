"""Finds the strings of a JSON document that moderation looks at, and masks characters in place.

Two readers. `read_fields` is the fast one, on the C decoder: enough to decide. `locate` walks the
text itself and knows where each string stands, so that masking changes those characters and leaves
every other byte (number formats, key order, spaces, even repeated keys) as the user sent it. It
also takes over where the C decoder cannot tell the whole truth: repeated keys, deep nesting.

Bytes that are not UTF-8 travel through as surrogates (errors="surrogateescape"): clients show such
messages too, so they must not pass unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

Path = tuple[str, ...]

_SPACE = " \t\r\n"
_TOKEN = re.compile(r'[\s:,]*(?:([{}\[\]])|(")|([^\s{}\[\]":,]+))')
_PIECE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL
)


class NotJsonError(ValueError):
    """The payload is no JSON document."""


class _AmbiguousError(ValueError):
    """An object has a key twice."""


def parse_paths(fields: Sequence[str]) -> tuple[Path, ...]:
    """Split dotted paths."""
    return tuple(tuple(field.split(".")) for field in fields)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _AmbiguousError
    return found


_decode = json.JSONDecoder(strict=False, object_pairs_hook=_pairs).raw_decode


def read_fields(text: str, paths: Sequence[Path]) -> tuple[Any, list[str]]:
    """Decode; return the document's `type` and the strings at `paths`. A list stands for each of
    its elements.

    Raises NotJsonError.
    """
    start = 0 if text.startswith("{") else len(text) - len(text.lstrip(_SPACE))
    try:
        body, end = _decode(text, start)
    except (_AmbiguousError, RecursionError):
        return _read_all(text, paths)
    except ValueError as error:
        raise NotJsonError(str(error)) from error
    if end != len(text) and text[end:].strip(_SPACE):
        raise NotJsonError(f"more after the JSON value, at character {end}")
    if not isinstance(body, dict):
        return None, []
    strings: list[str] = []
    for path in paths:
        if len(path) == 1 and type(body.get(path[0])) is str:
            strings.append(body[path[0]])
        else:
            _collect(body, path, 0, strings)
    return body.get("type"), strings


def _collect(value: Any, path: Path, depth: int, strings: list[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, path, depth, strings)
    elif depth == len(path):
        if isinstance(value, str):
            strings.append(value)
    elif isinstance(value, dict) and path[depth] in value:
        _collect(value[path[depth]], path, depth + 1, strings)


def _read_all(text: str, paths: Sequence[Path]) -> tuple[Any, list[str]]:
    """The slow reader: of repeated keys it takes every string, and the last `type`."""
    kind: Any = None
    strings: list[str] = []
    for path, value, _span in walk(text, _longest(paths)):
        if path == ("type",):
            kind = value
        if path in paths and isinstance(value, str):
            strings.append(value)
    return kind, strings


def mask_fields(
    text: str, paths: Sequence[Path], spans_of: Callable[[str], Sequence[tuple[int, int]]]
) -> str:
    """Mask, in every string at `paths`, the characters that `spans_of` gives for its value."""
    parts: list[str] = []
    at = 0
    for path, value, (start, end) in walk(text, _longest(paths)):
        if path in paths and isinstance(value, str) and (spans := spans_of(value)):
            pieces = _PIECE.findall(text, start + 1, end - 1)
            for first, last in spans:
                pieces[first:last] = "*" * (last - first)
            parts += [text[at : start + 1], *pieces]
            at = end - 1
    parts.append(text[at:])
    return "".join(parts)


def _longest(paths: Sequence[Path]) -> int:
    return max(1, *map(len, paths)) if paths else 1


def walk(text: str, longest: int) -> Iterator[tuple[Path, Any, tuple[int, int]]]:
    """Yield (path, value, span in `text`) of every string and every other scalar whose path has at
    most `longest` keys, in order.

    List elements have the path of their list. Needs no recursion, so depth is no limit. Stops
    where the text is no JSON.
    """
    names: list[str] = []  # the current key of every open object
    in_object: list[bool] = []  # of every open container
    expect_key = False
    at = 0
    while (token := _TOKEN.match(text, at)) is not None:
        mark, quote, scalar = token.groups()
        at = token.end()
        if mark in ("{", "["):
            in_object.append(mark == "{")
            if mark == "{":
                names.append("")
            expect_key = mark == "{"
            continue
        if mark:
            if in_object and in_object.pop():
                names.pop()
        elif quote and expect_key:
            names[-1], at = _string(text, at)
            expect_key = False
            continue
        else:
            start = at - 1 if quote else token.start(3)
            value, at = _string(text, at) if quote else (_scalar(scalar), at)
            if len(names) <= longest:
                yield tuple(names), value, (start, at)
        expect_key = bool(in_object) and in_object[-1]


def _string(text: str, at: int) -> tuple[str, int]:
    try:
        value, end = scanstring(text, at, False)
    except ValueError as error:
        raise NotJsonError(str(error)) from error
    return value, end


def _scalar(token: str) -> Any:
    try:
        return json.loads(token)
    except ValueError as error:
        raise NotJsonError(str(error)) from error
