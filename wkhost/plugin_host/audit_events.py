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
            return "install", "", _of_install(request)
        case c.UpgradePlugin():
            granted = [name[:200] for name in request.granted]
            return "upgrade", request.no[:64], {"digest": request.digest[:80], "granted": granted}
        case c.RollbackPlugin():
            return "rollback", request.no[:64], {"to": request.to[:80]}
        case c.GrantPlugin():
            action = "grant" if request.granted else "revoke"
            return action, request.no[:64], {"capability": request.capability[:300]}
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


def _of_install(request: c.InstallPlugin) -> dict[str, Any]:
    details: dict[str, Any] = {"source": request.source, "enable": request.enable}
    details["digest"] = request.digest[:80]
    if request.granted is not None:
        details["granted"] = [name[:200] for name in request.granted]
    if request.withhold:
        details["withheld"] = [name[:200] for name in request.withhold]
    for flag in ("replace_source", "allow_downgrade"):
        if getattr(request, flag):
            details[flag] = True
    return details


def read_audit(log: AuditLog, request: c.GetPluginAudit) -> c.PluginAudit:
    """Answer from the log's files. Blocks."""
    if request.verify:
        found = verify(log.folder)
        return c.PluginAudit([], found.records, found.last_seq, found.last_hash, found.problem)
    records = log.read(min(max(request.limit, 0), MAX_RECORDS))
    return c.PluginAudit(records, len(records))
