"""A plugin's configuration: JSON bound to the dataclass that the plugin declares.

Types understood: bool, int, float, str, None, Any, Literal, Enum, list, tuple[T, ...],
dict[str, T], unions and nested dataclasses. Checks of a dataclass's own go into
`__post_init__` (ValueError).
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from plugin_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Binding:
    """One accepted configuration: its number and what `self.config` gives."""

    number: int
    value: Any


def bind(schema: type | None, config_json: bytes, number: int) -> Binding:
    """Decode and check a configuration. Empty bytes mean an empty object. Raises ConfigError."""
    try:
        raw = json.loads(config_json or b"{}")
    except ValueError as error:
        raise ConfigError(f"config: expected JSON, got {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config: expected an object, got {_name(raw)}")
    if schema is None:
        return Binding(number, types.MappingProxyType(raw))
    return Binding(number, _dataclass(schema, raw, "config"))


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value, ensure_ascii=False)[:60]


def _dataclass(schema: type, raw: Mapping[str, Any], path: str) -> Any:
    assert is_dataclass(schema)
    hints = get_type_hints(schema)
    known = {item.name: item for item in fields(schema) if item.init}
    for key in raw:
        if key not in known:
            raise ConfigError(f"{path}.{key}: unknown; expected one of {', '.join(known)}")
    values = {}
    for name, item in known.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], f"{path}.{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{path}.{name}: required, but not given")
    try:
        return schema(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _value(hint: Any, raw: Any, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return raw
    if origin is Union or origin is types.UnionType:
        return _union(hint, raw, path)
    if origin is Literal:
        if raw not in get_args(hint):
            wanted = ", ".join(repr(choice) for choice in get_args(hint))
            raise ConfigError(f"{path}: expected one of {wanted}, got {_name(raw)}")
        return raw
    if origin in (list, tuple) or hint in (list, tuple):
        return _sequence(hint, origin or hint, raw, path)
    if origin is dict or hint is dict:
        return _mapping(hint, raw, path)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected an object, got {_name(raw)}")
        return _dataclass(hint, raw, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(raw)
        except ValueError:
            wanted = ", ".join(repr(choice.value) for choice in hint)
            raise ConfigError(f"{path}: expected one of {wanted}, got {_name(raw)}") from None
    return _scalar(hint, raw, path)


def _union(hint: Any, raw: Any, path: str) -> Any:
    problems = []
    for choice in get_args(hint):
        try:
            return _value(choice, raw, path)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError("; or ".join(problems))


def _sequence(hint: Any, kind: Any, raw: Any, path: str) -> Any:
    if not isinstance(raw, list):
        raise ConfigError(f"{path}: expected a list, got {_name(raw)}")
    item = (get_args(hint) or (Any,))[0]
    return kind(_value(item, each, f"{path}[{index}]") for index, each in enumerate(raw))


def _mapping(hint: Any, raw: Any, path: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected an object, got {_name(raw)}")
    item = (get_args(hint) or (str, Any))[1]
    return {key: _value(item, each, f"{path}.{key}") for key, each in raw.items()}


def _scalar(hint: Any, raw: Any, path: str) -> Any:
    if hint is None or hint is type(None):
        if raw is None:
            return None
        raise ConfigError(f"{path}: expected null, got {_name(raw)}")
    wanted = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    if hint not in wanted:
        raise ConfigError(f"{path}: the schema's type {hint!r} is not supported")
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if type(raw) is not hint:
        raise ConfigError(f"{path}: expected {wanted[hint]}, got {_name(raw)}")
    return raw
