"""What the dispatcher runs: a handler, and one invocation of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plugin_sdk import convert
from plugin_sdk.config import Binding
from plugin_sdk.hooks import HookSpec
from plugin_sdk.plugin import HookMark


class Handler:
    """One hook's method, ready to be called."""

    __slots__ = ("arguments", "function", "mark", "spec")

    def __init__(self, function: Callable[..., Any], mark: HookMark, spec: HookSpec) -> None:
        self.function = function
        self.mark = mark
        self.spec = spec
        self.arguments = convert.ARGUMENTS.get(mark.name)


class Job:
    """One invocation of a handler: of one call, or of a batch of them.

    `call` is what the handler's sends are tied to, `binding` the configuration it sees, `proposed`
    the one that it judges (`config_update`), `work` the coroutine that a sync handler returned.
    """

    __slots__ = (
        "args",
        "binding",
        "call",
        "error",
        "handler",
        "ids",
        "proposed",
        "result",
        "work",
    )

    def __init__(self, handler: Handler, ids: Sequence[int], args: tuple[Any, ...], call: Any):
        self.handler = handler
        self.ids = ids
        self.args = args
        self.call = call
        self.binding: Binding | None = None
        self.proposed: Binding | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.work: Any = None
