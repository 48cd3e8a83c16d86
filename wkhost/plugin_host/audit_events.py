"""How requests stand in the audit log, and how the log is asked. For server and commands alike."""

from __future__ import annotations

from typing import Any

from wkhost.link import contract as c
from wkhost.plugin_host.audit import AuditLog, verify

MAX_RECORDS = 10_000


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
    records = log.read(min(max(request.limit, 0), MAX_RECORDS))
    return c.PluginAudit(records, len(records))
