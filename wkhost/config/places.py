"""Where each setting sits in the tree: what the loader and the documentation walk over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any

from wkhost.config.settings import Settings
from wkhost.config.spec import Spec


@dataclass(frozen=True, slots=True)
class Place:
    """Where one setting sits in the tree: `group` is "" for the top. `default` as declared."""

    group: str
    name: str
    default: Any
    spec: Spec


def _places(group: str, node: Any) -> Iterator[Place]:
    declared: tuple[Field[Any], ...] = fields(node)
    for each in declared:
        value = getattr(node, each.name)
        if is_dataclass(each.default) and "spec" not in each.metadata:
            yield from _places(each.name, value)
        else:
            yield Place(group, each.name, value, each.metadata["spec"])


PLACES: tuple[Place, ...] = tuple(_places("", Settings()))
"""Every setting, in the order of the tree."""
