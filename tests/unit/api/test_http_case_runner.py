"""The case runner itself: it must find differences, or passing cases would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.kit.http_cases import applicable, calls_of, load_cases, response_differences


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {}, False),
        ([1, 2], [1, 2, 3], False),
        ([{"a": {"$gt": 0}}], [{"a": 1}], True),
        ({"a": {"$absent": True}}, {"a": None}, False),
        ({"a": {"$any": True}}, {"a": None}, True),
        ({"$contains": [{"x": 1}]}, [{"x": 2}, {"x": 1}], True),
        ({"$contains": [{"x": 3}]}, [{"x": 2}], False),
        ({"$not_contains": ["a"]}, None, True),
        ({"$not_contains": ["a"]}, ["a"], False),
        ({"$set": ["a", "b"]}, ["b", "a"], True),
        ({"$set": ["a", "b"]}, ["b", "a", "a"], False),
        ({"$type": "int"}, True, False),
        ({"$regex": "^x"}, "xy", True),
        ({"$regex": "^x"}, "yx", False),
        ({"$len": 2}, [1], False),
    ],
)
def test_bodies_are_compared_by_the_conventions(expected: Any, got: Any, same: bool) -> None:
    response = httpx.Response(200, content=json.dumps(got))
    assert (not list(response_differences({"json": expected}, response))) is same


def test_every_case_uses_only_what_the_runner_knows() -> None:
    keys = {"server", "method", "path", "query", "headers", "json", "raw"}
    checks = {"expect", "eventually_ms", "capture"}
    known = {"status", "json", "text", "text_contains", "headers", "empty_body"}
    for case in load_cases():
        for call in calls_of(case):
            if "wait_ms" not in call:
                assert call.keys() <= keys | checks, case["id"]
                assert call.get("expect", {}).keys() <= known, case["id"]


def test_a_case_applies_only_with_all_its_paths_and_exactly_its_configuration() -> None:
    case = {"request": {"method": "GET", "path": "/a"}, "then": [{"method": "GET", "path": "/b"}]}
    assert applicable(case, {"/a", "/b"})
    assert not applicable(case, {"/a"})
    assert not applicable(case, {"/a", "/b"}, {"tokenAuthOn": True})
    assert not applicable({**case, "requires": {"x": 1}}, {"/a", "/b"})
    assert applicable({**case, "requires": {"x": 1}}, {"/a", "/b"}, {"x": 1})
