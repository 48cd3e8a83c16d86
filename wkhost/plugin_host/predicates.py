"""Which messages concern a hook: the manifest's predicates compiled once, run in the host.

A miss costs at most a microsecond: cheap tests come first, patterns are translated once, and JSON
is read only when everything cheaper already agreed and the payload can name a type at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from typing import Any

import msgspec

from wkhost.plugin_host.manifest import HookSpec
from wkhost.types import Message

Test = Callable[[Message], bool]


class _Typed(msgspec.Struct, gc=False):
    type: Any = None


_decode_type = msgspec.json.Decoder(_Typed).decode


def compile_predicate(spec: HookSpec) -> Test | None:
    """Return the test of `spec`, or None when it matches every message. The test never raises."""
    tests: list[Test] = []
    if spec.channel_types:
        tests.append(_channel_type_test(frozenset(spec.channel_types)))
    if spec.min_bytes or spec.max_bytes:
        tests.append(_size_test(spec.min_bytes, spec.max_bytes or 2**63))
    uid_matches = compile_globs(spec.uids)
    if uid_matches is not None:
        tests.append(lambda message, matches=uid_matches: matches(message.from_uid))  # type: ignore[misc]
    channel_matches = compile_globs(spec.channels)
    if channel_matches is not None:
        tests.append(lambda message, matches=channel_matches: matches(message.channel_id))  # type: ignore[misc]
    if spec.payload_types:
        tests.append(_payload_type_test(frozenset(spec.payload_types)))
    if len(tests) < 2:
        return tests[0] if tests else None
    return _all_of(tuple(tests))


def compile_globs(globs: Sequence[str]) -> Callable[[str], bool] | None:
    """Return a test that is true when any glob matches, or None when there is nothing to test.

    `*`, `?` and `[set]` as in fnmatch, case-sensitive. The translation uses atomic groups, so no
    pattern can make the match take more than polynomial time.
    """
    if not globs or "*" in globs:
        return None
    if not any(set(glob) & set("*?[") for glob in globs):
        return frozenset(globs).__contains__
    stems = tuple(glob[:-1] for glob in globs)
    if all(glob[-1] == "*" and not set(glob[:-1]) & set("*?[") for glob in globs):
        return lambda value: value.startswith(stems)
    match = re.compile("|".join(translate(glob) for glob in globs)).match
    return lambda value: match(value) is not None


def _channel_type_test(channel_types: frozenset[int]) -> Test:
    return lambda message: message.channel_type in channel_types


def _size_test(low: int, high: int) -> Test:
    return lambda message: low <= len(message.payload) <= high


def _payload_type_test(types: frozenset[int]) -> Test:
    def matches(message: Message) -> bool:
        payload = message.payload
        # A key may also be written with escapes; only then can the plain form be missing.
        if b'"type"' not in payload and b"\\" not in payload:
            return False
        try:
            value = _decode_type(payload).type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return isinstance(value, int | float) and value in types

    return matches


def _all_of(tests: tuple[Test, ...]) -> Test:
    def matches(message: Message) -> bool:
        for test in tests:  # noqa: SIM110 - all() with a generator costs twice as much
            if not test(message):
                return False
        return True

    return matches
