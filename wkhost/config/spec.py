"""How one setting is declared: its key, kind and sentence, kept beside the field's default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from wkhost.config.values import Kind

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of one setting beside its value.

    `key` is written with dots; `aliases` are other accepted spellings, the key itself wins.
    """

    key: str
    kind: Kind[Any]
    doc: str
    aliases: tuple[str, ...] = ()
    used: bool = True


def setting(
    key: str,
    default: T,
    kind: Kind[U],
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    used: bool = True,
    secret: bool = False,
) -> T:
    """Declare one field of a group. A secret stays out of the group's repr."""
    spec = Spec(key, kind, doc, aliases, used)
    declared: Any = field(default=default, repr=not secret, metadata={"spec": spec})
    return declared  # type: ignore[no-any-return]  # dataclasses replace the field by its default
