"""The plugin's configuration, and reading word files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plugin_sdk import ConfigError, Refuse

from .ai import AiConfig
from .matcher import WordList

MAX_WORDS = 1_000_000


@dataclass(frozen=True)
class ListConfig:
    """One word list: `words` and the lines of `file` together. See WordList for the rest."""

    name: str
    words: list[str] = field(default_factory=list)
    file: str = ""
    action: Literal["refuse", "mask"] = "refuse"
    code: int = 11
    text: str = "the message contains a forbidden word"
    whole_words: bool = False

    def __post_init__(self) -> None:
        Refuse(self.code, self.text)


@dataclass(frozen=True)
class Settings:
    """What is scanned: in JSON messages whose `type` is in `types` (empty: any), the strings at the
    dotted paths `fields`; other payloads as text when `plain` is "scan"."""

    lists: list[ListConfig] = field(default_factory=list)
    types: list[int] = field(default_factory=lambda: [1])
    fields: list[str] = field(default_factory=lambda: ["content"])
    plain: Literal["ignore", "scan"] = "ignore"
    ai: AiConfig = field(default_factory=AiConfig)


def load_lists(settings: Settings, folders: list[Path]) -> list[WordList]:
    """Read the word files; a relative one is looked for in `folders`. Raises ConfigError."""
    return [
        WordList(
            name=each.name,
            words=[*each.words, *(_read_words(each, folders) if each.file else ())],
            action=each.action,
            code=each.code,
            text=each.text,
            whole_words=each.whole_words,
        )
        for each in settings.lists
    ]


def _read_words(config: ListConfig, folders: list[Path]) -> list[str]:
    places = [folder / config.file for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(str(place) for place in places)
        raise ConfigError(f"config.lists: {config.name}: file: found none of {looked}")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config.lists: {config.name}: file: {path}: {error}") from error
    words = [line.strip() for line in text.splitlines()]
    found = [word for word in words if word and not word.startswith("#")]
    if len(found) > MAX_WORDS:
        raise ConfigError(
            f"config.lists: {config.name}: file: expected at most {MAX_WORDS} words, "
            f"got {len(found)}"
        )
    return found
