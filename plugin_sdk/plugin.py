"""The `Plugin` base class, the `@hook` mark, and finding the plugin in a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, overload

from plugin_sdk.config import Binding, bind
from plugin_sdk.context import current_binding
from plugin_sdk.errors import PluginDefinitionError
from plugin_sdk.hooks import SPECS
from plugin_sdk.host import Host
from plugin_sdk.log import Log
from plugin_sdk.secrets import Secrets

_F = TypeVar("_F", bound=Callable[..., Any])
_MARK = "__plugin_hook__"


@dataclass(frozen=True, slots=True)
class HookMark:
    """What `@hook` was given, and what the function is."""

    name: str
    blocking: bool = False
    batch: bool = False
    is_async: bool = False


@overload
def hook(function: _F, /) -> _F: ...
@overload
def hook(*, blocking: bool = False, batch: bool = False) -> Callable[[_F], _F]: ...
def hook(
    function: Callable[..., Any] | None = None, /, *, blocking: bool = False, batch: bool = False
) -> Any:
    """Mark the method of that name as a handler; plugin_sdk.hooks describes each hook.

    Sync and async handlers run on the event loop, so they must not block. With `blocking=True` a
    sync handler runs on a thread instead, several at once. With `batch=True` a `send` handler gets
    all messages that are waiting as one sequence and returns one verdict (or None) for each.
    """

    def mark(target: Callable[..., Any]) -> Callable[..., Any]:
        name = target.__name__
        if name not in SPECS:
            known = ", ".join(SPECS)
            raise PluginDefinitionError(
                f"@hook: there is no hook {name!r}; expected one of {known}"
            )
        is_async = inspect.iscoroutinefunction(target)
        if blocking and is_async:
            raise PluginDefinitionError(f"@hook(blocking=True): {name} must be a plain function")
        if batch and not SPECS[name].may_batch:
            raise PluginDefinitionError(f"@hook(batch=True): {name} has no batch form, only send")
        _check_arguments(target, name)
        setattr(target, _MARK, HookMark(name, blocking, batch, is_async))
        return target

    return mark if function is None else mark(function)


def _check_arguments(function: Callable[..., Any], name: str) -> None:
    spec = SPECS[name]
    try:
        inspect.signature(function).bind(*range(spec.arguments + 1))
    except TypeError:
        wanted = ["self", *inspect.signature(spec.doc).parameters]
        raise PluginDefinitionError(
            f"{function.__qualname__}: expected the arguments ({', '.join(wanted)})"
        ) from None


class Plugin:
    """Base of every plugin: a subclass with methods marked `@hook`.

    `Config` may be a dataclass: the schema of the plugin's configuration. `self.config` is then an
    instance of it (annotate it as `config: Config` for type checkers), else a read-only mapping.
    Inside a handler it is the configuration that held when the call was issued, to the handler's
    end. `blocking_threads` bounds the threads of `@hook(blocking=True)` handlers.
    """

    Config: ClassVar[type | None] = None
    blocking_threads: ClassVar[int] = 8
    hooks: ClassVar[dict[str, HookMark]] = {}

    host: Host
    """The host's API."""
    log: Log
    """Structured lines to the plugin's log."""
    data_dir: Path
    """The plugin's own writable directory."""
    secrets: Secrets
    """The secrets that the manifest declares and the operator has set, always the newest ones."""
    _binding: Binding

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        marks = dict(cls.hooks)
        for name, value in vars(cls).items():
            mark = getattr(value, _MARK, None)
            if mark is not None:
                marks[mark.name] = mark
            elif name in SPECS and callable(value):
                raise PluginDefinitionError(
                    f"{cls.__name__}.{name} is named like a hook; mark it with @hook or rename it"
                )
        cls.hooks = marks
        if cls.Config is not None and not is_dataclass(cls.Config):
            raise PluginDefinitionError(f"{cls.__name__}.Config: expected a dataclass")

    @property
    def config(self) -> Any:
        """The configuration of the current call; outside calls, the newest accepted one."""
        binding = current_binding.get()
        return (self._binding if binding is None else binding).value

    @classmethod
    def wire_hooks(cls) -> list[str]:
        """Names of the implemented hooks, as announced to the host."""
        return [name for name in cls.hooks if SPECS[name].on_wire]


def build(
    plugin_class: type[Plugin],
    *,
    host: Host,
    log: Log,
    data_dir: Path,
    binding: Binding,
    secrets: Secrets | None = None,
) -> Plugin:
    """Make the plugin with its surroundings in place, so that `__init__` may use them."""
    plugin = plugin_class.__new__(plugin_class)
    plugin.host = host
    plugin.log = log
    plugin.data_dir = data_dir
    plugin._binding = binding
    plugin.secrets = Secrets() if secrets is None else secrets
    log.hide(plugin.secrets)
    plugin.__init__()  # type: ignore[misc]
    return plugin


def bind_config(plugin_class: type[Plugin], config_json: bytes, number: int) -> Binding:
    """Check a configuration against the plugin's schema. Raises ConfigError."""
    return bind(plugin_class.Config, config_json, number)


def find_plugin(module: ModuleType) -> type[Plugin]:
    """The plugin of a module: the class named by its `plugin` variable, else its only subclass."""
    named = getattr(module, "plugin", None)
    if isinstance(named, type) and issubclass(named, Plugin):
        return named
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Plugin)
        and value.__module__ == module.__name__
    ]
    leaves = [cls for cls in found if not any(o is not cls and issubclass(o, cls) for o in found)]
    if len(leaves) == 1:
        return leaves[0]
    names = ", ".join(cls.__name__ for cls in leaves) or "none"
    raise PluginDefinitionError(
        f"{module.__file__}: expected one subclass of Plugin (or `plugin = TheClass`), "
        f"found {names}"
    )
