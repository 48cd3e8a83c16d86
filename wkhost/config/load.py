"""Reads the settings: defaults < file < environment < command line.

Each source becomes a list of entries (key, value, where it stands); `_Merge` knows which keys
exist and keeps the last value of each. Anything unknown or wrong is one ConfigError, in one
sentence that names the key, the value and what was expected. Empty text and zero numbers mean
the default; booleans can be set to false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from wkhost.config.file import Node, read_file
from wkhost.config.known import UNUSED_GROUPS, UNUSED_KEYS
from wkhost.config.places import PLACES, Place
from wkhost.config.settings import Settings
from wkhost.config.values import Raw
from wkhost.errors import ConfigError

CONFIG_VARIABLE = "WK_CONFIG"
"""Names the configuration file; not a setting."""
_PREFIX = "WK_"


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    value: Raw
    where: str
    alias: bool = False


class _Names:
    """All accepted spellings, folded to lower case."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.aliases: set[str] = set()
        self.unused: dict[str, str] = {key.casefold(): key for key in UNUSED_KEYS}
        self.unused_groups = tuple(group.casefold() for group in UNUSED_GROUPS)
        for place in PLACES:
            self.places[place.spec.key.casefold()] = place
            for alias in place.spec.aliases:
                self.places[alias.casefold()] = place
                self.aliases.add(alias.casefold())
        self.spellings = [
            *(place.spec.key for place in PLACES),
            *(alias for place in PLACES for alias in place.spec.aliases),
            *UNUSED_KEYS,
        ]
        self.groups = {
            folded.rpartition(".")[0] for folded in map(str.casefold, self.spellings)
        } - {""}
        self.variables = {variable_of(key): key for key in self.spellings}

    def is_leaf(self, folded: str) -> bool:
        return folded in self.places or folded in self.unused or self.in_unused_group(folded)

    def in_unused_group(self, folded: str) -> bool:
        return any(
            folded == group or folded.startswith(group + ".") for group in self.unused_groups
        )


def variable_of(key: str) -> str:
    """Return the name of the environment variable that sets `key`."""
    return _PREFIX + key.replace(".", "_").upper()


_NAMES = _Names()


class _Merge:
    """Collects values and warnings from one source after the other."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.warned: dict[str, str] = {}

    def take(self, entries: list[_Entry]) -> None:
        """Apply one source; within it a key wins over its aliases."""
        for entry in sorted(entries, key=lambda each: not each.alias):
            self._take_one(entry)

    def _take_one(self, entry: _Entry) -> None:
        folded = entry.key.casefold()
        place = _NAMES.places.get(folded)
        if place is None:
            if entry.value not in ("", [], {}):
                self._warn(entry)
            return
        spec = place.spec
        if entry.value in ("", [], {}):
            return
        try:
            value = spec.kind.parse(entry.value)
        except ValueError:
            raise ConfigError(
                f"{entry.where}: {entry.key} is {_shown(entry.value)}, expected "
                f"{spec.kind.expected}"
            ) from None
        if not spec.used:
            self._warn(entry)
        if value in (0, "", ()) and not isinstance(value, bool):
            return
        self.values[spec.key] = value

    def _warn(self, entry: _Entry) -> None:
        self.warned.setdefault(
            entry.key.casefold(),
            f"{entry.where}: {entry.key} is accepted but this server does not use it",
        )

    def settings(self) -> Settings:
        """Build the tree."""
        groups: dict[str, dict[str, Any]] = {}
        for place in PLACES:
            if place.spec.key in self.values:
                groups.setdefault(place.group, {})[place.name] = self.values[place.spec.key]
        top = groups.pop("", {})
        defaults = Settings()
        for group, changes in groups.items():
            top[group] = replace(getattr(defaults, group), **changes)
        return replace(defaults, **top)


def _shown(value: Raw) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return repr(text) if isinstance(value, str) else text


def _unknown(where: str, name: str, known: list[str], what: str) -> ConfigError:
    by_folded = {word.casefold(): word for word in known}
    folded = name.casefold()
    close = [each for each in by_folded if each.rpartition(".")[2] == folded.rpartition(".")[2]]
    if len(close) != 1:
        close = get_close_matches(folded, by_folded, n=1, cutoff=0.6)
    hint = f"; did you mean {by_folded[close[0]]}?" if close else ""
    return ConfigError(f"{where}: unknown {what} {name}{hint}")


def _flatten(name: str, node: Node, prefix: str = "") -> Iterator[_Entry]:
    """Turn nested and dotted keys into entries with full keys."""
    for key, child in node.children:
        path = f"{prefix}{key}"
        folded = path.casefold()
        where = f"{name}{child.where}"
        if _NAMES.is_leaf(folded):
            yield _Entry(path, child.raw(), where, folded in _NAMES.aliases)
        elif child.is_map:
            if not child.children and folded not in _NAMES.groups:
                raise _unknown(where, path, _NAMES.spellings, "setting")
            yield from _flatten(name, child, f"{path}.")
        elif any(group == folded or group.startswith(folded + ".") for group in _NAMES.groups):
            if child.raw() != "":
                raise ConfigError(
                    f"{where}: {path} is {_shown(child.raw())}, expected a group of settings"
                )
        else:
            raise _unknown(where, path, _NAMES.spellings, "setting")


def _from_file(file: Path) -> list[_Entry]:
    entries = list(_flatten(str(file), read_file(file)))
    seen: dict[str, _Entry] = {}
    for entry in entries:
        first = seen.setdefault(entry.key.casefold(), entry)
        if first is not entry:
            raise ConfigError(f"{entry.where}: {entry.key} is set twice, first at {first.where}")
    return entries


def _from_environment(environ: Mapping[str, str]) -> list[_Entry]:
    entries = []
    groups = tuple(variable_of(group) for group in UNUSED_GROUPS)
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        where = f"environment variable {variable}"
        key = _NAMES.variables.get(variable)
        if key is None:
            group = next(
                (each for each in groups if variable == each or variable.startswith(each + "_")),
                None,
            )
            if group is None:
                known = list(_NAMES.variables)
                raise _unknown("environment", variable, known, "variable")
            key = variable.removeprefix(_PREFIX).replace("_", ".").casefold()
        entries.append(_Entry(key, value.strip(), where, key.casefold() in _NAMES.aliases))
    return entries


def _from_overrides(overrides: Mapping[str, Raw]) -> list[_Entry]:
    entries = []
    for key, value in overrides.items():
        if not _NAMES.is_leaf(key.casefold()):
            raise _unknown("command line", key, _NAMES.spellings, "setting")
        entries.append(_Entry(key, value, "command line", key.casefold() in _NAMES.aliases))
    return entries


def load_settings(
    file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Raw]
) -> tuple[Settings, list[str]]:
    """Read all sources; returns the settings and warnings, one sentence each.

    `overrides` are flags by dotted key. Raises ConfigError, one sentence.
    """
    merge = _Merge()
    if file is not None:
        merge.take(_from_file(file))
    merge.take(_from_environment(environ))
    merge.take(_from_overrides(overrides))
    settings, warnings = _without_half_tls(merge.settings())
    return settings, [*merge.warned.values(), *warnings]


def _without_half_tls(settings: Settings) -> tuple[Settings, list[str]]:
    """WSS listens only with an address, a certificate and a key; say what is missing."""
    wss = settings.wss_config
    certified = wss.cert_file is not None and wss.key_file is not None
    if certified:
        for key, path in (("certFile", wss.cert_file), ("keyFile", wss.key_file)):
            if path is not None and not path.is_file():
                raise ConfigError(
                    f"wssConfig.{key} is {str(path)!r}, expected an existing PEM file"
                )
    if settings.wss_addr is not None and not certified:
        return replace(settings, wss_addr=None), [
            f"wssAddr is {settings.wss_addr}, but wssConfig.certFile and wssConfig.keyFile "
            "are not both set: WSS stays off"
        ]
    if settings.wss_addr is None and (wss.cert_file or wss.key_file):
        return settings, ["wssConfig is set, but wssAddr is empty: WSS stays off"]
    return settings, []
