"""What is asked of the sandbox: by the operator, by a plugin's manifest, and by both together."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import SANDBOX_LAYERS, Manifest
from wkhost.plugin_host.sandbox.uids import FIRST_UID, LAST_UID

ALWAYS = ("fs", "net", "pid", "syscalls")
"""Without these no plugin starts, unless its sandbox is off."""


class Mode(StrEnum):
    """`strict` wants every layer, `auto` the four that always hold and what more there is."""

    STRICT = "strict"
    AUTO = "auto"
    OFF = "off"


class SandboxPolicy(msgspec.Struct, frozen=True):
    """The operator's part. `by_plugin` overrides `mode` for single plugins."""

    mode: Mode = Mode.AUTO
    by_plugin: dict[str, Mode] = {}
    first_uid: int = FIRST_UID
    last_uid: int = LAST_UID

    def mode_of(self, no: str) -> Mode:
        return self.by_plugin.get(no, self.mode)


def minimum(mode: Mode, manifest: Manifest, *, root: bool) -> tuple[str, ...]:
    """Return the layers without which the plugin is not started: the stronger of both sides.

    Raises PluginError where the operator switched off what the manifest requires.
    """
    required = manifest.sandbox.require
    if mode is Mode.OFF:
        if required:
            raise PluginError(
                f"{manifest.no}: its manifest requires the sandbox layers {', '.join(required)}, "
                "and plugin.sandbox is off for it"
            )
        return ()
    asked = set(ALWAYS) | set(required)
    if mode is Mode.STRICT:
        asked |= set(SANDBOX_LAYERS) - ({"uid"} if not root else set())
    return tuple(layer for layer in SANDBOX_LAYERS if layer in asked)
