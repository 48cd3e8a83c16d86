"""Reads a configuration file (YAML, which includes JSON, or TOML) into plain text nodes.

Values stay text, as written: `on` is a word and not a boolean, `1001` becomes a number only where
the setting is one.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wkhost.config.values import Raw
from wkhost.errors import ConfigError

_MAX_DEPTH = 16
_NULLS = {"", "~", "null", "Null", "NULL"}


@dataclass(slots=True)
class Node:
    """A value of the file. `where` completes the file's name ("" where lines are unknown)."""

    where: str = ""
    text: str = ""
    items: list[Node] = field(default_factory=list)
    children: list[tuple[str, Node]] = field(default_factory=list)
    is_list: bool = False
    is_map: bool = False

    def raw(self) -> Raw:
        """Return the value as text, list or map; null is empty text."""
        if self.is_map:
            return {key: child.raw() for key, child in self.children}
        if self.is_list:
            return [item.raw() for item in self.items]
        return self.text


def read_file(file: Path) -> Node:
    """Return the file's top map. Raises ConfigError, one sentence with the line if there is one."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {file} is not UTF-8 text") from error
    root = _from_toml(file, text) if file.suffix == ".toml" else _from_yaml(file, text)
    if not root.is_map:
        raise ConfigError(f"configuration file {file} must hold settings as `key: value` lines")
    return root


def _from_toml(file: Path, text: str) -> Node:
    try:
        return _plain(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration file {file} is not valid TOML: {error}") from error


def _plain(value: Any) -> Node:
    if isinstance(value, dict):
        return Node(is_map=True, children=[(key, _plain(each)) for key, each in value.items()])
    if isinstance(value, list):
        return Node(is_list=True, items=[_plain(each) for each in value])
    return Node(text=str(value).lower() if isinstance(value, bool) else str(value))


def _from_yaml(file: Path, text: str) -> Node:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {file} is not valid YAML") from error
    return Node(is_map=True) if root is None else _composed(file, root, 0)


def _composed(file: Path, node: yaml.Node, depth: int) -> Node:
    where = f" line {node.start_mark.line + 1}"
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{file}{where}: values are nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        children = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{file}{where}: a key must be a word")
            child = _composed(file, value, depth + 1)
            child.where = f" line {key.start_mark.line + 1}"
            children.append((key.value, child))
        return Node(where, is_map=True, children=children)
    if isinstance(node, yaml.SequenceNode):
        items = [_composed(file, each, depth + 1) for each in node.value]
        return Node(where, is_list=True, items=items)
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{file}{where}: not a word, a list or a map")
    null = node.style is None and node.value in _NULLS
    return Node(where, "" if null else node.value)
