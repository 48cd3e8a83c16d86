"""What belongs to the call that is being handled: its lineage and its configuration.

Both travel in context variables, so that tasks and threads that a handler starts see them too.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from plugin_sdk.config import Binding

current_call: ContextVar[Any] = ContextVar("plugin_sdk_call", default=None)
"""The call on the wire (of a single-message handler), or None."""
current_binding: ContextVar[Binding | None] = ContextVar("plugin_sdk_binding", default=None)
"""The configuration of the current call; None outside calls."""


def current_lineage() -> bytes:
    """The lineage of the call that is being handled; empty outside one."""
    return getattr(current_call.get(), "lineage", b"")
