"""The plugin's secrets: texts that the operator has set apart from the configuration.

They come over the plugin's socket and stay in memory. They do not show in `repr` and cannot be
pickled; the plugin's log and error texts have their names where they would stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NoReturn

_SHORTEST_HIDDEN = 4
"""A shorter value would blank out ordinary words."""


class Secrets(Mapping[str, str]):
    """Name -> value of every secret that is set: `self.secrets["api_key"]`, or `.get(...)`."""

    __slots__ = ("_needles", "_values")

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values: dict[str, str] = {}
        self._needles: list[tuple[str, str]] = []
        self.replace(values or {})

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"the secret {name!r} is not set") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<secrets: {', '.join(self._values) or 'none'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets cannot be pickled or copied")

    def replace(self, values: Mapping[str, str]) -> list[str]:
        """Take the place of all values at once; return the names that changed, came or went."""
        old, self._values = self._values, dict(values)
        needles: set[tuple[str, str]] = set()
        # What is rotated out may still stand in an error of a request that is on its way.
        for name, value in [*old.items(), *values.items()]:
            if len(value) >= _SHORTEST_HIDDEN:
                forms = (value, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
                needles.update((form, name) for form in forms)
        self._needles = sorted(needles, key=lambda needle: -len(needle[0]))
        return [name for name in {**old, **values} if old.get(name) != values.get(name)]

    def redact(self, text: str) -> str:
        """Put "[secret NAME]" where a value stands in `text`."""
        for value, name in self._needles:
            if value in text:
                text = text.replace(value, f"[secret {name}]")
        return text
