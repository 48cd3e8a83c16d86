"""Case folding that keeps every character in its place, so that positions found in the folded text
are positions in the text as the user wrote it."""

from __future__ import annotations


class _Fold(dict[int, int]):
    """Code point to folded code point, filled as characters are met."""

    def __missing__(self, code: int) -> int:
        folded = chr(code).casefold()
        # A character whose folded form is longer (the German sharp s, the Turkish dotted I) stays.
        self[code] = result = ord(folded) if len(folded) == 1 else code
        return result


_FOLD = _Fold()


def fold(text: str) -> str:
    """Fold case per character; the result has as many characters as `text`."""
    # No character folds to less than one, and none looks at its neighbours.
    folded = text.casefold()
    return folded if len(folded) == len(text) else text.translate(_FOLD)
