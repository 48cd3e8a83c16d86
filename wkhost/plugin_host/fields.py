"""Checked reading of a TOML table: every error is collected, none stops the reading."""

from __future__ import annotations

import re
from typing import Any

_MISSING: Any = object()


class Fields:
    """One table, read field by field; `errors` is shared by all tables of a file.

    Each reader returns the default after recording an error, so that the caller goes on and the
    author sees all errors at once. Call `finish` when all known fields were read.
    """

    def __init__(self, table: Any, path: str, errors: list[str]) -> None:
        self._path = path
        self.errors = errors
        self._read: set[str] = set()
        if not isinstance(table, dict):
            errors.append(f"[{path}]: expected a table, got {_kind(table)}")
            table = {}
        self._table: dict[str, Any] = table

    def error(self, name: str, text: str) -> None:
        place = f"{self._path}.{name}" if self._path else name
        self.errors.append(f"{place}: {text}")

    def take(self, name: str, default: Any = _MISSING) -> Any:
        self._read.add(name)
        value = self._table.get(name, _MISSING)
        return default if value is _MISSING else value

    def has(self, name: str) -> bool:
        return name in self._table

    def sub(self, name: str) -> Fields:
        """A table inside this one; an absent one reads as empty."""
        path = f"{self._path}.{name}" if self._path else name
        return Fields(self.take(name, {}), path, self.errors)

    def names(self) -> list[str]:
        return list(self._table)

    def text(
        self, name: str, default: str | None, *, pattern: re.Pattern[str] | None = None, what: str
    ) -> str:
        """A text of at most 1,024 characters. `default` None: the field is required."""
        value = self.take(name)
        if value is _MISSING:
            if default is None:
                self.error(name, f"missing, expected {what}")
            return default or ""
        if not isinstance(value, str):
            self.error(name, f"expected {what}, got {_kind(value)}")
            return default or ""
        if len(value) > 1024 or (pattern is not None and pattern.fullmatch(value) is None):
            self.error(name, f"expected {what}, got {_short(value)}")
            return default or ""
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.take(name, default)
        if type(value) is not int or not low <= value <= high:
            self.error(name, f"expected a whole number from {low} to {high}, got {_short(value)}")
            return default
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.error(name, f"expected true or false, got {_short(value)}")
            return default
        return value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.take(name, default)
        if value not in choices:
            self.error(name, f"expected one of {', '.join(choices)}, got {_short(value)}")
            return default
        return str(value)

    def texts(
        self, name: str, *, pattern: re.Pattern[str], what: str, most: int = 256
    ) -> tuple[str, ...]:
        """A list of texts; absent reads as empty."""
        value = self.take(name, [])
        if not isinstance(value, list) or len(value) > most:
            self.error(name, f"expected a list of at most {most} texts ({what})")
            return ()
        good: list[str] = []
        for number, item in enumerate(value):
            if isinstance(item, str) and pattern.fullmatch(item):
                good.append(item)
            else:
                self.error(f"{name}[{number}]", f"expected {what}, got {_short(item)}")
        return tuple(good)

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers; absent reads as empty."""
        value = self.take(name, [])
        if not isinstance(value, list) or len(value) > 256:
            self.error(name, "expected a list of at most 256 whole numbers")
            return ()
        good: list[int] = []
        for number, item in enumerate(value):
            if type(item) is int and low <= item <= high:
                good.append(item)
            else:
                text = f"expected a whole number from {low} to {high}, got {_short(item)}"
                self.error(f"{name}[{number}]", text)
        return tuple(good)

    def finish(self) -> None:
        """Record every field that nobody asked for."""
        known = ", ".join(sorted(self._read))
        for name in self._table:
            if name not in self._read:
                self.error(str(name), f"unknown field, expected one of: {known}")


def _kind(value: Any) -> str:
    names = {dict: "a table", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
