"""What a supervisor is told: what to run, what to do at a switch, what the server is like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from wkhost.errors import PluginError
from wkhost.plugin_host.package import Package

Persist = Callable[[], Awaitable[None]]


class PluginVetoError(PluginError):
    """The plugin said no to a configuration."""


class Plan(msgspec.Struct, frozen=True):
    """What the next generation is made of."""

    package: Package
    config: dict[str, Any]
    config_number: int

    @property
    def config_json(self) -> bytes:
        return msgspec.json.encode(self.config)


class Server(msgspec.Struct, frozen=True):
    """What a session must know of the server."""

    max_payload_bytes: int
    host_version: str


async def _nothing_before() -> None:
    await trio.lowlevel.checkpoint()


def _nothing() -> None:
    pass


class Switch(msgspec.Struct, frozen=True):
    """What is to be done when a new generation serves and takes over: `before` while the old one
    still has the calls, `at` in the very stretch in which the new one gets them."""

    before: Callable[[], Awaitable[None]] = _nothing_before
    at: Callable[[], None] = _nothing


DIRECTLY = Switch()
