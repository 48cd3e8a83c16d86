"""Where the operator's requests about plugins come in: each goes to its part, each change is told
to the audit log with who asked for it, whether it was done or not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from wkhost.errors import PluginError, WkhostError
from wkhost.link import contract as c
from wkhost.plugin_host.audit import Event
from wkhost.plugin_host.audit_events import describe, read_audit
from wkhost.plugin_host.host import PluginHost
from wkhost.types import Message


class Desk:
    """Implements the kernel's `PluginManager`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._auditor = host.auditor
        self._handlers: dict[type, Callable[[Any], Awaitable[c.Response]]] = {
            c.InspectPlugin: host.versions.inspect,
            c.InstallPlugin: host.versions.install,
            c.UpgradePlugin: host.versions.upgrade,
            c.RollbackPlugin: host.versions.rollback,
            c.GrantPlugin: host.versions.grant,
            c.GetPluginVersions: host.versions.versions,
            c.PluginAction: host.act,
            c.ListPlugins: self._list,
            c.GetPlugin: self._get,
            c.GetPluginLogs: self._logs,
            c.GetPluginOrder: self._order,
            c.GetPluginSandbox: self._sandbox,
            c.GetPluginAudit: self._audit,
            c.GetPluginFigures: self._figures,
            c.GetPluginValues: self._values,
            c.GetPluginConfig: host.tuning.config,
            c.GetPluginSecrets: host.tuning.secrets,
            c.SetPluginSecret: host.tuning.set_secret,
        }

    async def handle(self, request: c.PluginRequest, actor: c.Actor) -> c.Response:
        """Answer one request. Raises PluginError."""
        described = describe(request)
        handler: Callable[[Any], Awaitable[c.Response]]
        if isinstance(request, c.SetPluginConfig):
            handler = partial(self._host.tuning.configure, by=actor.uid)
        else:
            handler = self._handlers[type(request)]
        if described is None:
            return await handler(request)
        action, plugin, details = described
        try:
            answer = await handler(request)
        except WkhostError as error:
            await self._record(Event(actor, action, plugin, {**details, "failed": str(error)}))
            raise
        if isinstance(answer, c.PluginStatus):
            plugin = answer.no
            details = {**details, "version": answer.version, "state": answer.state}
        await self._record(Event(actor, action, plugin, details))
        return answer

    def statistics(self) -> dict[str, Any]:
        return {**self._host.statistics(), "audit_records_lost": self._auditor.lost}

    def observations(self, message: Message) -> Sequence[c.PluginObservation]:
        return self._host.observations(message)

    async def _record(self, event: Event) -> None:
        try:
            await self._auditor.record(event)
        except OSError as error:
            raise PluginError(
                f"{event.action}: was carried out, but the audit log cannot be written ({error})"
            ) from error

    # --- questions ------------------------------------------------------------------------------

    async def _list(self, request: c.ListPlugins) -> c.PluginList:
        return self._host.list()

    async def _get(self, request: c.GetPlugin) -> c.PluginStatus:
        return self._host.info(request.no)

    async def _logs(self, request: c.GetPluginLogs) -> c.PluginLogs:
        return self._host.logs(request)

    async def _figures(self, request: c.GetPluginFigures) -> c.AllPluginFigures:
        return await self._host.figures()

    async def _values(self, request: c.GetPluginValues) -> c.PluginValues:
        return self._host.plugin_values(request.no, request.after)

    async def _order(self, request: c.GetPluginOrder) -> c.PluginOrder:
        return self._host.order()

    async def _sandbox(self, request: c.GetPluginSandbox) -> c.PluginSandbox:
        return await self._host.sandbox()

    async def _audit(self, request: c.GetPluginAudit) -> c.PluginAudit:
        return await trio.to_thread.run_sync(read_audit, self._auditor.log, request)
