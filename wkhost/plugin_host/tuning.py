"""Settings and secrets of plugins while the server runs: changed without a restart.

A change of settings is prepared (checked here, then put to the plugin, which may refuse), then
persisted, then committed by naming its number in the plugin's next batch: each batch names the
number that its calls are to be handled with. Before the registry is replaced nothing has changed;
after it the change holds, whatever dies in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host import config_store
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.config_schema import merge_config
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.plan import Persist, Plan, PluginVetoError
from wkhost.plugin_host.registry import Entry
from wkhost.plugin_host.supervisor import Supervisor

CONFIG_BUDGET_S = 5.0


class Tuning:
    """`running(no)` gives the supervisor of an active plugin; `changing` is the plugin host's lock:
    one change at a time, so that an install cannot overwrite a configuration."""

    def __init__(
        self,
        catalog: Catalog,
        running: Callable[[str], Supervisor | None],
        changing: trio.Lock,
    ) -> None:
        self._catalog = catalog
        self._running = running
        self._changing = changing

    async def config(self, request: c.GetPluginConfig) -> c.PluginConfig:
        return await trio.to_thread.run_sync(self._catalog.config, request.no)

    async def configure(self, request: c.SetPluginConfig, by: int) -> c.PluginConfig:
        """Change settings; `by` is the uid of who asks. Raises PluginError: nothing has changed.

        The one exception: with `reload`, a registry that cannot be written after the new process
        has started leaves that running until the next start.
        """
        async with self._changing:
            entry, package = await trio.to_thread.run_sync(self._read, request.no)
            overrides = config_store.changed(entry, package.manifest, request)
            config = merge_config(package.manifest.schema, package.manifest.config, overrides)
            supervisor = self._running(request.no)
            number = entry.config_number + 1
            if supervisor is not None:
                number = supervisor.number_config(entry.config_number)

            async def persist() -> None:
                write = partial(
                    config_store.persist,
                    self._catalog.registry,
                    request.no,
                    number,
                    overrides,
                    by,
                )
                await trio.to_thread.run_sync(write)

            if supervisor is None:
                await persist()
            elif request.reload:
                await supervisor.reload(Plan(package, config, number))
                await persist()
            else:
                await self._configure(supervisor, Plan(package, config, number), persist)
        return await self.config(c.GetPluginConfig(request.no))

    async def _configure(self, supervisor: Supervisor, plan: Plan, persist: Persist) -> None:
        try:
            await supervisor.configure(plan, CONFIG_BUDGET_S, persist)
        except PluginVetoError as error:
            raise PluginError(
                f"{error}; nothing was changed (--reload stores it and starts the plugin anew)"
            ) from error

    async def set_secret(self, request: c.SetPluginSecret) -> c.PluginSecrets:
        """Seal or remove a value, then give the running plugin what it may know now."""
        async with self._changing:
            await trio.to_thread.run_sync(self._catalog.set_secret, request)
            supervisor = self._running(request.no)
            if supervisor is not None:
                await supervisor.renew_secrets()
        return await self.secrets(c.GetPluginSecrets(request.no))

    async def secrets(self, request: c.GetPluginSecrets) -> c.PluginSecrets:
        return await trio.to_thread.run_sync(self._catalog.secret_times, request.no)

    def _read(self, no: str) -> tuple[Entry, Package]:
        entry = self._catalog.registry.get(no)
        return entry, self._catalog.load(entry, verify=False)
