"""Kinds of setting values: how each is written by people and read by the server.

All sources (file, environment, flags) deliver text, lists of text or maps of text; a `Kind` turns
that into the value the server uses. A parser raises ValueError for anything else, and the loader
says what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Raw = str | list["Raw"] | dict[str, "Raw"]
"""A value as a source delivers it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or dial. Port 0 lets the operating system choose one."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        prefix = f"{self.scheme}://" if self.scheme else ""
        return f"{prefix}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class InitNode:
    """One member of a cluster's first configuration. `port` 0 means the default cluster port."""

    node_id: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """`name` is for tables, `expected` completes the sentence "expected ..."."""

    name: str
    expected: str
    parse: Callable[[Raw], T]


def _text(raw: Raw) -> str:
    if not isinstance(raw, str):
        raise ValueError
    return raw.strip()


def _boolean(raw: Raw) -> bool:
    word = _text(raw).casefold()
    if word in {"true", "1", "t", "yes", "y", "on"}:
        return True
    if word in {"false", "0", "f", "no", "n", "off"}:
        return False
    raise ValueError


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)")
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


def _duration(raw: Raw) -> float:
    text = _text(raw).replace(" ", "")
    if text == "0":
        return 0.0
    total = 0.0
    position = 0
    while position < len(text):
        match = _DURATION.match(text, position)
        if match is None:
            raise ValueError
        total += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if position == 0 or not math.isfinite(total):
        raise ValueError
    return total


_SIZE = re.compile(r"(\d+)\s*(?:([kmgt])i?)?b?", re.IGNORECASE)
_SIZE_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def _size(raw: Raw) -> int:
    match = _SIZE.fullmatch(_text(raw))
    if match is None:
        raise ValueError
    size = int(match[1]) << _SIZE_SHIFT[(match[2] or "").casefold()]
    if size >= 1 << 63:
        raise ValueError
    return size


def _strings(raw: Raw) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(word for word in re.split(r"[,\s]+", raw) if word)
    if isinstance(raw, list):
        return tuple(_text(item) for item in raw)
    raise ValueError


def _path(raw: Raw) -> Path:
    text = _text(raw)
    if "\0" in text:
        raise ValueError
    return Path(text).expanduser()


_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]*)):(?P<port>\d{1,5})")


def parse_address(text: str, scheme: str = "") -> Address:
    """Read `scheme://host:port`; the scheme may be left out, an empty host means every address.

    Raises ValueError.
    """
    head, separator, tail = text.rpartition("://")
    if separator and head.casefold() != scheme:
        raise ValueError(text)
    match = _HOST_PORT.fullmatch(tail)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(text)
    return Address(scheme, match["v6"] or match["host"] or "0.0.0.0", int(match["port"]))


def _init_node(node_id: str, address: str) -> InitNode:
    number = int(node_id)
    if not 1 <= number <= 1023:
        raise ValueError
    if ":" in address:
        where = parse_address(address)
        return InitNode(number, where.host, where.port)
    if not address or "/" in address:
        raise ValueError
    return InitNode(number, address, 0)


def _init_nodes(raw: Raw) -> tuple[InitNode, ...]:
    if isinstance(raw, dict):
        pairs = [(number, _text(address)) for number, address in raw.items()]
    else:
        pairs = []
        for item in _strings(raw):
            number, separator, address = item.partition("@")
            if not separator:
                raise ValueError
            pairs.append((number, address))
    nodes = tuple(_init_node(number, address) for number, address in pairs)
    if len({node.node_id for node in nodes}) != len(nodes):
        raise ValueError
    return nodes


TEXT: Kind[str] = Kind("text", "text", _text)
BOOLEAN: Kind[bool] = Kind("boolean", "true or false", _boolean)
DURATION: Kind[float] = Kind(
    "duration", "a duration such as 500ms, 30s, 1h30m or 30d (a number with its unit)", _duration
)
SIZE: Kind[int] = Kind("size", "a size in bytes such as 65536, 64KB or 64MB", _size)
STRINGS: Kind[tuple[str, ...]] = Kind(
    "list", "a list of words, or words separated by commas or spaces", _strings
)
PATH: Kind[Path] = Kind("path", "a path", _path)
INIT_NODES: Kind[tuple[InitNode, ...]] = Kind(
    "nodes",
    "nodes with numbers from 1 to 1023, each once, written as a list of 1001@host:11110 or as a "
    "map of 1001: host:11110",
    _init_nodes,
)


def number(low: int, high: int) -> Kind[int]:
    """Return the kind of whole numbers from `low` to `high`. 0 is read too: it means default."""

    def parse(raw: Raw) -> int:
        text = _text(raw)
        if not re.fullmatch(r"[+-]?\d{1,19}", text):
            raise ValueError
        value = int(text)
        if value != 0 and not low <= value <= high:
            raise ValueError
        return value

    return Kind("number", f"a whole number from {low} to {high}", parse)


def choice(*words: str) -> Kind[str]:
    """Return the kind that takes one of `words`, in any case."""

    def parse(raw: Raw) -> str:
        word = _text(raw).casefold()
        if word not in words:
            raise ValueError
        return word

    return Kind("choice", f"one of {', '.join(words)}", parse)


def address(scheme: str, example: str) -> Kind[Address]:
    """Return the kind of addresses of one scheme ("" = written without a scheme)."""

    def parse(raw: Raw) -> Address:
        return parse_address(_text(raw), scheme)

    return Kind("address", f"an address such as {example}", parse)
