"""Runs the machine-checkable HTTP cases of `tests/vectors/http-cases.json` against a server.

The file's own `conventions` object states the format. A case is a list of calls (setup, request,
then), each with an expectation; names captured from one answer can be used in later calls.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx

Case = dict[str, Any]
Call = dict[str, Any]

CASES_FILE = Path(__file__).parent.parent / "vectors" / "http-cases.json"
_RETRY_S = 0.05
_CALL_TIMEOUT_S = 30
_ABSENT = object()
_NAME = re.compile(r"\{([a-z][a-z0-9_]*)(:int)?\}")


def load_cases() -> list[Case]:
    cases: list[Case] = json.loads(CASES_FILE.read_text(encoding="utf-8"))["cases"]
    return cases


def calls_of(case: Case) -> list[Call]:
    """The case's calls in order; an item with `wait_ms` is a pause."""
    checked = {key: case[key] for key in ("expect", "eventually_ms", "capture") if key in case}
    return [*case.get("setup", []), {**case["request"], **checked}, *case.get("then", [])]


def applicable(
    case: Case,
    paths: AbstractSet[str],
    requires: Mapping[str, object] | None = None,
    *,
    servers: AbstractSet[str] = frozenset({"api"}),
) -> bool:
    """True when every path the case calls is in `paths` and it needs exactly `requires`."""
    calls = [call for call in calls_of(case) if "wait_ms" not in call]
    return case.get("requires", {}) == dict(requires or {}) and all(
        call["path"] in paths and call.get("server", "api") in servers for call in calls
    )


def run_case(case: Case, api_base: str, *, manager_base: str = "", token: str = "") -> list[str]:
    """Make the case's calls until one is answered otherwise; return how, empty when none was."""
    names: dict[str, Any] = {"run": f"t{token_hex(5)}", "token": token}
    bases = {"api": api_base, "manager": manager_base}
    with httpx.Client(timeout=_CALL_TIMEOUT_S, trust_env=False) as client:
        for number, call in enumerate(calls_of(case)):
            if "wait_ms" in call:
                time.sleep(call["wait_ms"] / 1000)
                continue
            differences = _run_call(client, bases, _fill(call, names), names)
            if differences:
                where = f"{case['id']}: call {number} {call['method']} {call['path']}"
                return [f"{where}: {difference}" for difference in differences]
    return []


def _run_call(
    client: httpx.Client, bases: dict[str, str], call: Call, names: dict[str, Any]
) -> list[str]:
    """Repeat the call until its expectation holds or `eventually_ms` are over; then capture."""
    deadline = time.monotonic() + call.get("eventually_ms", 0) / 1000
    while True:
        response = _send(client, bases[call.get("server", "api")], call)
        differences = list(response_differences(call.get("expect", {}), response))
        if not differences or time.monotonic() >= deadline:
            break
        time.sleep(_RETRY_S)
    if differences:
        return differences
    for name, path in call.get("capture", {}).items():
        value = _at(response.json(), path)
        if value is _ABSENT:
            return [f"nothing at {path} to capture in {response.text}"]
        names[name] = value
    return []


def _send(client: httpx.Client, base: str, call: Call) -> httpx.Response:
    body = None
    headers = dict(call.get("headers", {}))
    if "raw" in call:
        body = call["raw"].encode()
    elif "json" in call:
        body = json.dumps(call["json"], ensure_ascii=False).encode()
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    query = {key: str(value) for key, value in call.get("query", {}).items()} or None
    return client.request(
        call["method"], base + call["path"], params=query, headers=headers, content=body
    )


def _fill(value: Any, names: dict[str, Any]) -> Any:
    """Put captured names into every string; a whole "{name:int}" becomes a number."""
    if isinstance(value, dict):
        return {key: _fill(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, names) for item in value]
    if not isinstance(value, str):
        return value
    whole = _NAME.fullmatch(value)
    if whole and whole[2]:
        return int(names[whole[1]])
    return _NAME.sub(lambda found: str(names.get(found[1], found[0])), value)


def _at(value: Any, path: str) -> Any:
    for step in path.split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError, ValueError):
            return _ABSENT
    return value


# --- expectations ------------------------------------------------------------------------------


def response_differences(expect: dict[str, Any], response: httpx.Response) -> Iterator[str]:
    status = expect.get("status", response.status_code)
    if response.status_code != status:
        yield f"status {response.status_code}, expected {status}: {response.text[:200]}"
        return
    if expect.get("empty_body") and response.content:
        yield f"a body where none was expected: {response.text[:200]}"
    if "text" in expect and response.text != expect["text"]:
        yield f"body {response.text[:200]!r}, expected {expect['text']!r}"
    wanted = expect.get("text_contains", [])
    for part in [wanted] if isinstance(wanted, str) else wanted:
        if part not in response.text:
            yield f"body without {part!r}: {response.text[:200]}"
    for name, value in expect.get("headers", {}).items():
        if response.headers.get(name) != value:
            yield f"header {name} is {response.headers.get(name)!r}, expected {value!r}"
    if "json" in expect:
        try:
            body = response.json()
        except ValueError:
            yield f"body is not JSON: {response.text[:200]}"
        else:
            yield from _compare(expect["json"], body, "$")


def _compare(expected: Any, got: Any, path: str) -> Iterator[str]:
    """Yield what does not match: objects by the keys listed, arrays element by element."""
    if isinstance(expected, dict) and any(key.startswith("$") for key in expected):
        for name, argument in expected.items():
            if not _OPERATORS[name](argument, got):
                yield f"{path}: {_shown(got)} does not match {name} {_shown(argument)}"
    elif isinstance(expected, dict) and isinstance(got, dict):
        for key, item in expected.items():
            yield from _compare(item, got.get(key, _ABSENT), f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for index, pair in enumerate(zip(expected, got, strict=True)):
            yield from _compare(*pair, f"{path}[{index}]")
    elif isinstance(expected, dict | list) or not _same(expected, got):
        yield f"{path}: {_shown(got)}, expected {_shown(expected)}"


def _matches(expected: Any, got: Any) -> bool:
    return not any(True for _ in _compare(expected, got, ""))


def _same(expected: Any, got: Any) -> bool:
    """Equality that tells 1, 1.0 and true apart."""
    return type(expected) is type(got) and bool(expected == got)


def _shown(value: Any) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False)[:200]


def _is_set(items: list[Any], got: Any) -> bool:
    if not isinstance(got, list) or any(isinstance(item, dict | list) for item in got):
        return False
    return Counter((type(i), i) for i in items) == Counter((type(i), i) for i in got)


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "number": (int, float),
    "bool": (bool,),
    "array": (list,),
    "object": (dict,),
}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$type": lambda name, got: type(got) in _TYPES[name],
    "$regex": lambda pattern, got: isinstance(got, str) and bool(re.search(pattern, got)),
    "$gt": lambda bound, got: type(got) in (int, float) and got > bound,
    "$in": lambda values, got: any(_same(value, got) for value in values),
    "$any": lambda _, got: got is not _ABSENT,
    "$absent": lambda _, got: got is _ABSENT,
    "$len": lambda length, got: isinstance(got, list) and len(got) == length,
    "$contains": lambda items, got: (
        isinstance(got, list) and all(any(_matches(i, g) for g in got) for i in items)
    ),
    "$not_contains": lambda items, got: (
        got is None
        or (isinstance(got, list) and not any(_matches(i, g) for i in items for g in got))
    ),
    "$set": _is_set,
}
