"""Where the operator's requests about plugins come in: each goes to its part, each change is told
to the audit log with who asked for it, whether it was done or not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host.audit import AuditLog, Event, verify
from wkhost.plugin_host.host import PluginHost

MAX_AUDIT_RECORDS = 10_000


class Desk:
    """Implements the kernel's `PluginManager`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._auditor = host.auditor
        self._handlers: dict[type, Callable[[Any], Awaitable[c.Response]]] = {
            c.InstallPlugin: host.install,
            c.PluginAction: host.act,
            c.ListPlugins: self._list,
            c.GetPlugin: self._get,
            c.GetPluginLogs: self._logs,
            c.GetPluginOrder: self._order,
            c.GetPluginAudit: self._audit,
        }

    async def handle(self, request: c.PluginRequest, actor: c.Actor) -> c.Response:
        """Answer one request. Raises PluginError."""
        described = describe(request)
        handler = self._handlers[type(request)]
        if described is None:
            return await handler(request)
        action, plugin, details = described
        try:
            answer = await handler(request)
        except PluginError as error:
            await self._record(Event(actor, action, plugin, {**details, "failed": str(error)}))
            raise
        if isinstance(answer, c.PluginStatus):
            plugin = answer.no
            details = {**details, "version": answer.version, "state": answer.state}
        await self._record(Event(actor, action, plugin, details))
        return answer

    def statistics(self) -> dict[str, Any]:
        return {**self._host.statistics(), "audit_records_lost": self._auditor.lost}

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

    async def _order(self, request: c.GetPluginOrder) -> c.PluginOrder:
        return self._host.order()

    async def _audit(self, request: c.GetPluginAudit) -> c.PluginAudit:
        return await trio.to_thread.run_sync(read_audit, self._auditor.log, request)


def describe(request: c.PluginRequest) -> tuple[str, str, dict[str, Any]] | None:
    """Return action, plugin and details of a change as the audit log tells it, None for questions.

    Values of settings and of secrets are not told, only which were changed.
    """
    match request:
        case c.InstallPlugin():
            return "install", "", {"source": request.source, "enable": request.enable}
        case c.PluginAction():
            return request.action[:40], request.no[:64], {}
        case c.SetPluginConfig():
            names = {"set": sorted(request.values), "unset": sorted(request.unset)}
            extra = {"restore": request.restore} if request.restore else {}
            return "configure", request.no[:64], {**names, **extra, "reload": request.reload}
        case c.SetPluginSecret():
            what = "removed" if request.value is None else "changed"
            return "secret", request.no[:64], {"key": request.key[:64], "value": what}
    return None


def read_audit(log: AuditLog, request: c.GetPluginAudit) -> c.PluginAudit:
    """Answer from the log's files. Blocks."""
    if request.verify:
        found = verify(log.folder)
        return c.PluginAudit([], found.records, found.last_seq, found.last_hash, found.problem)
    records = log.read(min(max(request.limit, 0), MAX_AUDIT_RECORDS))
    return c.PluginAudit(records, len(records))
