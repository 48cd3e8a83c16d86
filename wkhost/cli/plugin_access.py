"""The data directory of a stopped server, as the commands about plugins change it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from wkhost.config import Settings
from wkhost.errors import PluginError
from wkhost.link.contract import OPERATOR, Actor, PluginRequest
from wkhost.plugin_host.audit import AUDIT_FOLDER, AuditLog, Event
from wkhost.plugin_host.audit_events import describe
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.secret_store import SecretKey

R = TypeVar("R")


def catalog(settings: Settings) -> Catalog:
    key = SecretKey(settings.plugin.secret_key_file, settings.root_dir)
    return Catalog(settings.plugin_path, key)


def audit_log(settings: Settings) -> AuditLog:
    return AuditLog(settings.plugin_path / AUDIT_FOLDER)


def audited(settings: Settings, request: PluginRequest, act: Callable[[], R]) -> R:
    """Do what `request` asks for with `act`, and record it as a running server does."""
    described = describe(request)
    if described is None:
        return act()
    action, plugin, details = described
    actor = Actor(OPERATOR, os.geteuid(), os.getpid())
    details = {**details, "server": "stopped"}
    log = audit_log(settings)
    try:
        answer: Any = act()
    except PluginError as error:
        log.append([Event(actor, action, plugin, {**details, "failed": str(error)})])
        raise
    log.append([Event(actor, action, plugin or getattr(answer, "no", ""), details)])
    result: R = answer
    return result
