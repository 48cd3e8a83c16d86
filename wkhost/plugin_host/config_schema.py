"""A plugin's settings: declared types, and the check of values against them."""

from __future__ import annotations

from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.fields import Fields

_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "flag": (bool,),
    "list": (list,),
    "table": (dict,),
}


class Setting(msgspec.Struct, frozen=True):
    """One declared setting. `min` and `max` bound a number, or the length of anything else.

    A `secret` is a text that never stands among the settings; the operator sets it by itself.
    """

    type: str
    help: str = ""
    choices: tuple[Any, ...] = ()
    min: float | None = None
    max: float | None = None
    secret: bool = False


def secret_names(schema: dict[str, Setting]) -> list[str]:
    """Return the names of the declared secrets, in the manifest's order."""
    return [name for name, setting in schema.items() if setting.secret]


def read_schema(fields: Fields) -> dict[str, Setting]:
    """Read the [schema] table; errors go to `fields`."""
    schema: dict[str, Setting] = {}
    for name in fields.names():
        entry = fields.sub(name)
        bounds: dict[str, float | None] = {}
        for bound in ("min", "max"):
            value = entry.take(bound, None)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                entry.error(bound, "expected a number")
                value = None
            bounds[bound] = value
        choices = entry.take("choices", [])
        if not isinstance(choices, list):
            entry.error("choices", "expected a list of values")
            choices = []
        kind = entry.choice("type", "text", tuple(_TYPES))
        text = entry.text("help", "", what="a text of at most 1,024 characters")
        secret = entry.flag("secret", False)
        if secret and (kind != "text" or choices or any(b is not None for b in bounds.values())):
            entry.error("secret", "expected a text without choices, min and max")
        entry.finish()
        schema[name] = Setting(
            type=kind,
            help=text,
            choices=tuple(choices),
            min=bounds["min"],
            max=bounds["max"],
            secret=secret,
        )
    return schema


def check_config(schema: dict[str, Setting], values: dict[str, Any]) -> list[str]:
    """Return one line per value that does not fit its declaration."""
    errors: list[str] = []
    for name, value in values.items():
        setting = schema.get(name)
        if setting is None:
            continue
        if setting.secret:
            errors.append(f"{name}: is a secret, set it with `wkhost plugin secret set NO {name}`")
            continue
        if not _is_a(value, setting.type):
            errors.append(f"{name}: expected a value of type {setting.type}")
            continue
        if setting.choices and value not in setting.choices:
            errors.append(f"{name}: expected one of {', '.join(map(str, setting.choices))}")
        size = value if setting.type in ("integer", "number") else _length(value)
        if setting.min is not None and size is not None and size < setting.min:
            errors.append(f"{name}: expected at least {setting.min}")
        if setting.max is not None and size is not None and size > setting.max:
            errors.append(f"{name}: expected at most {setting.max}")
    return errors


def merge_config(
    schema: dict[str, Setting], defaults: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that hold: `defaults` with `overrides` on top.

    Raises PluginError, one line per error: an unknown name, or a value of the wrong type (declared,
    or that of the default). A plugin that declares neither defaults nor schema checks by itself.
    """
    if not defaults and not schema:
        return dict(overrides)
    errors = check_config(schema, overrides)
    for name, value in overrides.items():
        if name not in defaults and name not in schema:
            known = ", ".join(sorted({*defaults, *schema})) or "none"
            errors.append(f"{name}: unknown setting, expected one of: {known}")
        elif name not in schema and not _is_a(value, kind_of(defaults[name])):
            errors.append(f"{name}: expected a value of type {kind_of(defaults[name])}")
    if errors:
        raise PluginError("config: " + "\n".join(errors))
    return {**defaults, **overrides}


def _is_a(value: Any, kind: str) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def kind_of(default: Any) -> str:
    """Return the type that a default stands for; a whole number stands for any number."""
    if isinstance(default, bool):
        return "flag"
    for kind, types in _TYPES.items():
        if isinstance(default, types):
            return "number" if kind == "integer" else kind
    return "text"


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, str | list | dict) else None
