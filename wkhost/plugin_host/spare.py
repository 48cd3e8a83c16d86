"""A second process of a plugin that waits: started, contained and imported, and nothing more.

Theory of operation. A spare is made some time after its plugin serves, so that it does not slow
that down, and made again when it was taken or has died. It has neither token nor settings nor
secrets: these it gets when it is taken. One made for another package than is wanted is of no use
and is ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from wkhost.errors import PluginError
from wkhost.plugin_host.generation import Generation
from wkhost.plugin_host.package import Package

REST_S = 0.2
LONGEST_REST_S = 30.0

log = structlog.get_logger(__name__)


class Spare:
    """The spare of one plugin. `make` gives a generation that has not run."""

    def __init__(self, no: str, make: Callable[[Package], Awaitable[Generation]]) -> None:
        self._no = no
        self._make = make
        self._package: Package | None = None
        self._waiting: Generation | None = None
        self._rest_s = REST_S
        self._changed = trio.Event()

    @property
    def ready(self) -> bool:
        return self._waiting is not None and not self._waiting.ended.is_set()

    def want(self, package: Package | None) -> None:
        """Keep a spare of `package` from now on, or none."""
        if package != self._package:
            self._package = package
            self._rest_s = REST_S
            if self._waiting is not None:
                self._waiting.session.end("it is not needed any more")
                self._waiting = None
        self._changed.set()

    def take(self, package: Package) -> Generation | None:
        """Return a spare of `package` that waits, if there is one; the caller promotes it."""
        spare = self._waiting
        if spare is None or spare.ended.is_set() or package != self._package:
            return None
        self._waiting = None
        self._rest_s = REST_S
        self._changed.set()
        return spare

    async def run(self, nursery: trio.Nursery) -> None:
        """Keep what is wanted, until cancelled. Processes live in `nursery`."""
        while True:
            self._changed = trio.Event()
            if self._package is None or self.ready:
                await self._changed.wait()
                continue
            await trio.sleep(self._rest_s)
            package = self._package
            if package is None:
                continue
            try:
                spare = await self._make(package)
            except PluginError as error:
                log.warning("plugin_spare_failed", plugin=self._no, reason=str(error))
                self._slow_down()
                continue
            if package == self._package:
                self._waiting = spare
                nursery.start_soon(self._live, spare)

    async def _live(self, spare: Generation) -> None:
        try:
            await spare.run()
        except PluginError as error:
            if self._waiting is spare:
                log.warning("plugin_spare_failed", plugin=self._no, reason=str(error))
        if self._waiting is spare:
            self._waiting = None
            self._slow_down()
            self._changed.set()

    def _slow_down(self) -> None:
        self._rest_s = min(LONGEST_REST_S, self._rest_s * 2)
