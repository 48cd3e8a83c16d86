"""Binding a configuration to a plugin's dataclass: values, and errors that name the field."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest

from plugin_sdk import ConfigError
from plugin_sdk.config import bind


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")


@dataclass(frozen=True)
class Schema:
    part: Part
    parts: list[Part] = field(default_factory=list)
    pair: tuple[str, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    limit: int | None = None
    anything: Any = None
    flag: bool = False


def bound(raw: Any) -> Any:
    return bind(Schema, json.dumps(raw).encode(), 7).value


def test_every_type_is_bound() -> None:
    value = bound(
        {
            "part": {"name": "x", "size": 2},
            "parts": [{"name": "y"}],
            "pair": ["a", "b"],
            "by_name": {"k": 1},
            "mode": "b",
            "colour": "blue",
            "limit": 5,
            "anything": [1, {"a": None}],
            "flag": True,
        }
    )
    expected = Schema(
        part=Part("x", 2),
        parts=[Part("y")],
        pair=("a", "b"),
        by_name={"k": 1.0},
        mode="b",
        colour=Colour.BLUE,
        limit=5,
        anything=[1, {"a": None}],
        flag=True,
    )
    assert asdict(value) == asdict(expected)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "config: expected an object, got a list"),
        ({}, "config.part: required, but not given"),
        ({"part": 5}, "config.part: expected an object, got 5"),
        ({"part": {"name": 5}}, "config.part.name: expected a string, got 5"),
        ({"part": {"name": "x", "size": True}}, "config.part.size: expected an integer, got true"),
        ({"part": {"name": "x", "size": 0}}, "config.part: size: expected at least 1, got 0"),
        ({"part": {"name": "x"}, "prats": []}, "config.prats: unknown; expected one of part"),
        ({"part": {"name": "x"}, "parts": [{}]}, "config.parts[0].name: required"),
        ({"part": {"name": "x"}, "mode": "c"}, "config.mode: expected one of 'a', 'b', got \"c\""),
        ({"part": {"name": "x"}, "colour": "green"}, "config.colour: expected one of 'red'"),
        ({"part": {"name": "x"}, "by_name": {"k": "v"}}, "config.by_name.k: expected a number"),
        ({"part": {"name": "x"}, "limit": "5"}, 'config.limit: expected an integer, got "5"; or'),
        ({"part": {"name": "x"}, "pair": "ab"}, "config.pair: expected a list"),
        ({"part": {"name": "x"}, "flag": 1}, "config.flag: expected true or false, got 1"),
    ],
)
def test_errors_name_the_field_and_what_was_expected(raw: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bound(raw)
    assert str(caught.value).startswith(message)


def test_without_a_schema_it_is_a_read_only_mapping() -> None:
    value = bind(None, b'{"a": 1}', 1).value
    assert value["a"] == 1
    with pytest.raises(TypeError):
        value["a"] = 2
    assert dict(bind(None, b"", 1).value) == {}
    with pytest.raises(ConfigError, match="config: expected JSON"):
        bind(None, b"{", 1)
