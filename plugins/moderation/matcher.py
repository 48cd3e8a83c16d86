"""Finds every listed word in a text: one Aho-Corasick automaton over all lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import ahocorasick

from .fold import fold


@dataclass(frozen=True, slots=True)
class WordList:
    """Words with what to do when one is found. `whole_words` looks for words that are made of
    ASCII letters and digits only where no other such character touches them."""

    name: str
    words: Sequence[str]
    action: Literal["refuse", "mask"] = "refuse"
    code: int = 11
    text: str = ""
    whole_words: bool = False


@dataclass(frozen=True, slots=True)
class _Word:
    """A folded word: its length and, per list that holds it, the list's place and its rule."""

    length: int
    lists: tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a text contains: the first refusing list (in the order of the lists), if any, and the
    merged spans to mask as (start, end) in characters, ascending."""

    refused_by: WordList | None
    spans: list[tuple[int, int]]


NOTHING = Found(None, [])


class Matcher:
    """All lists at once. Building takes about 2.5 µs a word; a look-up does not depend on it."""

    def __init__(self, lists: Sequence[WordList]) -> None:
        self._lists = lists
        found: dict[str, list[tuple[int, bool]]] = {}
        for place, each in enumerate(lists):
            for word in each.words:
                folded = fold(word)
                if folded:
                    whole = each.whole_words and all(_is_word(char) for char in folded)
                    found.setdefault(folded, []).append((place, whole))
        self._automaton = ahocorasick.Automaton()
        shared: dict[_Word, _Word] = {}  # few differ, and 100,000 of them are 20 MiB
        for folded, places in found.items():
            entry = _Word(len(folded), tuple(places))
            self._automaton.add_word(folded, shared.setdefault(entry, entry))
        self._empty = not found
        self._automaton.make_automaton()

    def find(self, text: str) -> Found:
        """Look for every word."""
        if self._empty:
            return NOTHING
        folded = fold(text)
        refusing: int | None = None
        spans: list[tuple[int, int]] = []
        for last, word in self._automaton.iter(folded):
            start, end = last + 1 - word.length, last + 1
            for place, whole in word.lists:
                if whole and not _stands_alone(folded, start, end):
                    continue
                if self._lists[place].action == "mask":
                    spans.append((start, end))
                elif refusing is None or place < refusing:
                    refusing = place
        if refusing is None and not spans:
            return NOTHING
        return Found(None if refusing is None else self._lists[refusing], merge(spans))


def _is_word(char: str) -> bool:
    return char.isascii() and char.isalnum()


def _stands_alone(text: str, start: int, end: int) -> bool:
    before_is_word = start > 0 and _is_word(text[start - 1])
    return not before_is_word and not (end < len(text) and _is_word(text[end]))


def merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join overlapping and touching spans; ascending."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def mask(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Replace each character of the spans by `*`."""
    parts: list[str] = []
    at = 0
    for start, end in spans:
        parts += [text[at:start], "*" * (end - start)]
        at = end
    parts.append(text[at:])
    return "".join(parts)
