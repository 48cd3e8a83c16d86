"""Which role may ask what over the link."""

from __future__ import annotations

from typing import get_args

from wkhost.link import contract

_API_REQUESTS: tuple[type, ...] = (
    contract.SendMessage,
    contract.SyncMessages,
    contract.GetMaxMessageSeq,
    contract.SetUserToken,
    contract.AddSystemUids,
    contract.SetChannel,
    contract.AddSubscribers,
    contract.RemoveSubscribers,
    contract.AddToDenylist,
    contract.AddToAllowlist,
    contract.GetHealth,
    contract.GetStatistics,
    contract.ListPlugins,
    contract.GetPlugin,
    contract.GetPluginOrder,
    contract.GetMetrics,
)

ALLOWED: dict[str, frozenset[type]] = {
    contract.API_WORKER: frozenset(_API_REQUESTS),
    contract.OPERATOR: frozenset(get_args(contract.Request)),
}
"""Role -> the request types it may ask. Whoever may change or read out plugins is an operator."""
