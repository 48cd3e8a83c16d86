"""Numbers of generations, never given twice, over restarts of the server too."""

from __future__ import annotations

import trio

from wkhost.plugin_host.catalog import Catalog

_RESERVED = 100
"""One durable write of the registry buys so many numbers; a restart leaves a gap at most."""


class Numbering:
    """The numbers of one plugin's processes."""

    def __init__(self, catalog: Catalog, no: str) -> None:
        self._catalog = catalog
        self._no = no
        self._last = self._end = 0

    async def next(self) -> int:
        """Raises PluginError when the plugin is not installed any more."""
        if self._last >= self._end:
            self._last = await trio.to_thread.run_sync(
                self._catalog.reserve_generations, self._no, _RESERVED
            )
            self._end = self._last + _RESERVED
        self._last += 1
        return self._last
