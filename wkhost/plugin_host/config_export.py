"""A plugin's declared settings as a JSON Schema (draft 2020-12).

The schema is made here from what the manifest declares; nothing of a plugin's own is passed on as
schema, so there is no `$ref` that could point elsewhere.
"""

from __future__ import annotations

from typing import Any

from wkhost.plugin_host.config_schema import Setting, kind_of
from wkhost.plugin_host.manifest import Manifest

_TYPES = {
    "text": "string",
    "integer": "integer",
    "number": "number",
    "flag": "boolean",
    "list": "array",
    "table": "object",
}
_BOUNDS = {
    "text": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "list": ("minItems", "maxItems"),
    "table": ("minProperties", "maxProperties"),
}


def json_schema(manifest: Manifest) -> dict[str, Any]:
    """Return the schema of what the operator may set. Secrets are in it, as `writeOnly`."""
    properties = {
        name: _property(Setting(kind_of(value)), value) for name, value in manifest.config.items()
    }
    for name, setting in manifest.schema.items():
        properties[name] = _property(setting, manifest.config.get(name))
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{manifest.no} {manifest.version}",
        "type": "object",
        "properties": properties,
    }
    if properties:
        # A plugin that declares nothing checks by itself.
        schema["additionalProperties"] = False
    return schema


def _property(setting: Setting, default: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _TYPES[setting.type]}
    if setting.help:
        found["description"] = setting.help
    if setting.choices:
        found["enum"] = list(setting.choices)
    low, high = _BOUNDS.get(setting.type, ("", ""))
    if low and setting.min is not None:
        found[low] = setting.min
    if high and setting.max is not None:
        found[high] = setting.max
    if setting.secret:
        found["writeOnly"] = True
    elif default is not None:
        found["default"] = default
    return found
