"""A plugin's settings on disk: working out a change, keeping it, telling what holds and what did.

Used with a running server (in a thread) and without one. A change is one replacement of the
registry, so it holds whole or not at all. Versions before it are kept with it, up to a bound.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.link.contract import ConfigVersion, PluginConfig, SetPluginConfig
from wkhost.plugin_host.config_export import json_schema
from wkhost.plugin_host.config_schema import merge_config, secret_names
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.registry import Entry, Registry

MAX_VERSIONS = 20
MAX_HISTORY_BYTES = 256 * 1024
MAX_OVERRIDES_BYTES = 128 * 1024
NOBODY = -1
"""The uid of a version that nobody has set: the one of the install."""


def changed(entry: Entry, manifest: Manifest, request: SetPluginConfig) -> dict[str, Any]:
    """Return the overrides that hold after the change. Raises PluginError; nothing is written."""
    if request.expect and request.expect != entry.config_number:
        raise PluginError(
            f"{entry.no}: the configuration is at number {entry.config_number} now, expected "
            f"{request.expect}; look at it again"
        )
    overrides = entry.config
    if request.restore:
        overrides = _version(entry, request.restore).overrides
    overrides = copy.deepcopy(overrides)
    for path in request.unset:
        _unset(overrides, manifest, path)
    for path, value in request.values.items():
        _set(overrides, manifest, path, value)
    size = len(msgspec.json.encode(overrides))
    if size > MAX_OVERRIDES_BYTES:
        raise PluginError(f"config: expected at most {MAX_OVERRIDES_BYTES} bytes, got {size}")
    merge_config(manifest.schema, manifest.config, overrides)
    return overrides


def persist(registry: Registry, no: str, number: int, overrides: dict[str, Any], by: int) -> Entry:
    """Make it the configuration that holds, and remember the one before. Durable at return."""

    def change(entry: Entry) -> Entry:
        new = ConfigVersion(number, time.time(), by, overrides)
        return msgspec.structs.replace(
            entry,
            config=overrides,
            config_number=number,
            history=_bounded((*history(entry), new)),
        )

    return registry.update(no, change)


def history(entry: Entry) -> tuple[ConfigVersion, ...]:
    """Return the versions that are kept, oldest first; the last one holds."""
    if entry.history and entry.history[-1].number == entry.config_number:
        return entry.history
    return (*entry.history, ConfigVersion(entry.config_number, 0.0, NOBODY, entry.config))


def without_secrets(
    versions: tuple[ConfigVersion, ...], manifest: Manifest
) -> tuple[ConfigVersion, ...]:
    """Drop values of names that an upgrade has made secrets: history may not keep them plain."""
    names = set(secret_names(manifest.schema))
    return tuple(
        msgspec.structs.replace(
            version,
            overrides={n: v for n, v in version.overrides.items() if n not in names},
        )
        for version in versions
    )


def describe(entry: Entry, manifest: Manifest, set_at: dict[str, float]) -> PluginConfig:
    """Return what the operator is shown. `set_at` names the secrets that have a value."""
    return PluginConfig(
        no=entry.no,
        number=entry.config_number,
        values=merge_config(manifest.schema, manifest.config, entry.config),
        schema=json_schema(manifest),
        history=list(without_secrets(history(entry), manifest)),
        secrets={name: name in set_at for name in secret_names(manifest.schema)},
    )


def _version(entry: Entry, number: int) -> ConfigVersion:
    kept = history(entry)
    for version in kept:
        if version.number == number:
            return version
    numbers = ", ".join(str(version.number) for version in kept)
    raise PluginError(f"{entry.no}: there is no configuration {number}, expected one of {numbers}")


def _bounded(versions: tuple[ConfigVersion, ...]) -> tuple[ConfigVersion, ...]:
    kept: list[ConfigVersion] = []
    size = 0
    for version in reversed(versions[-MAX_VERSIONS:]):
        size += len(msgspec.json.encode(version.overrides))
        if kept and size > MAX_HISTORY_BYTES:
            break
        kept.append(version)
    return tuple(reversed(kept))


def _declared(manifest: Manifest, name: str) -> bool:
    return name in manifest.schema or name in manifest.config


def _set(overrides: dict[str, Any], manifest: Manifest, path: str, value: Any) -> None:
    """Set a name, or a place inside a table by its dotted path."""
    root, *inner = path.split(".")
    if not inner or _declared(manifest, path) or not _declared(manifest, root):
        overrides[path] = value
        return
    table = copy.deepcopy(overrides.get(root, manifest.config.get(root, {})))
    place = table
    for name in inner[:-1]:
        place = place.setdefault(name, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise PluginError(f"config: {path}: expected a place inside a table")
    place[inner[-1]] = value
    overrides[root] = table


def _unset(overrides: dict[str, Any], manifest: Manifest, path: str) -> None:
    """Go back to the default of a name, or of a place inside a table."""
    if path in overrides:
        del overrides[path]
        return
    root, *inner = path.split(".")
    place, default = overrides.get(root), manifest.config.get(root)
    for name in inner[:-1]:
        place = place.get(name) if isinstance(place, dict) else None
        default = default.get(name) if isinstance(default, dict) else None
    if not inner or not isinstance(place, dict) or inner[-1] not in place:
        raise PluginError(f"config: {path}: is not set")
    if isinstance(default, dict) and inner[-1] in default:
        place[inner[-1]] = copy.deepcopy(default[inner[-1]])
    else:
        del place[inner[-1]]
