"""From the configuration tree to what each part is told. Translation only."""

from __future__ import annotations

from wkhost import log
from wkhost.api.worker_settings import WorkerSettings
from wkhost.config import Settings
from wkhost.config.values import Address
from wkhost.errors import ConfigError
from wkhost.gateway.settings import GatewaySettings
from wkhost.hooks.breaker import BreakerRules
from wkhost.hooks.records import CallRecords
from wkhost.kernel.settings import KernelSettings
from wkhost.plugin_host.egress_rules import (
    EgressRefusedError,
    PrivateTarget,
    Target,
    parse_private,
    parse_target,
)
from wkhost.plugin_host.rules import Rules
from wkhost.plugin_host.sandbox.policy import Mode, SandboxPolicy
from wkhost.store.options import StoreOptions


def egress_private(settings: Settings) -> tuple[PrivateTarget, ...]:
    """Return the addresses that the operator opens to plugins. Raises ConfigError."""
    found = []
    for text in settings.plugin.egress_private or ():
        try:
            found.append(parse_private(text))
        except EgressRefusedError as error:
            raise ConfigError(f"plugin.egressPrivate: {error}") from error
    return tuple(found)


def egress_allow(settings: Settings) -> dict[str, list[Target]]:
    """Return the hosts that the operator lets plugins reach, by number. Raises ConfigError."""
    found: dict[str, list[Target]] = {}
    for text in settings.plugin.egress_allow or ():
        no, equals, target = text.partition("=")
        try:
            if not equals:
                raise EgressRefusedError(f"{text!a}: expected NO=HOST:PORT")
            found.setdefault(no, []).append(parse_target(target))
        except EgressRefusedError as error:
            raise ConfigError(f"plugin.egressAllow: {error}") from error
    return found


def sandbox_policy(settings: Settings) -> SandboxPolicy:
    """Return what the operator asks of the plugins' sandbox. Raises ConfigError."""
    plugin = settings.plugin
    by_plugin: dict[str, Mode] = {}
    for text in plugin.sandbox_of or ():
        no, _, mode = text.partition("=")
        if mode not in list(Mode) or not no:
            raise ConfigError(
                f"plugin.sandboxOf: expected NO=MODE with one of {', '.join(Mode)}, got {text!a}"
            )
        by_plugin[no] = Mode(mode)
    return SandboxPolicy(
        mode=Mode(plugin.sandbox),
        by_plugin=by_plugin,
        first_uid=plugin.first_uid,
        last_uid=plugin.first_uid + 65_535,
    )


def gateway_settings(settings: Settings) -> GatewaySettings:
    """Return the gateway's part of the configuration."""
    limits = settings.limits
    wss = settings.wss_config
    return GatewaySettings(
        tcp=_host_port(settings.addr),
        ws=_host_port(settings.ws_addr),
        wss=_host_port(settings.wss_addr) if settings.wss_addr else None,
        wss_certificate=str(wss.cert_file or ""),
        wss_key=str(wss.key_file or ""),
        node_id=settings.cluster.node_id,
        encryption=not settings.disable_encryption,
        jsonrpc=not settings.disable_jsonrpc,
        connect_timeout_s=settings.connect_timeout_s,
        idle_timeout_s=settings.conn_idle_time_s,
        max_frame_bytes=limits.frame_bytes,
        outbox_bytes=limits.outbox_bytes,
        max_connections=limits.connections,
        max_connections_per_address=limits.connections_per_address,
        rate_frames_per_s=limits.frames_per_second,
        rate_bytes_per_s=limits.bytes_per_second,
    )


def kernel_settings(settings: Settings) -> KernelSettings:
    """Return the kernel's part of the configuration."""
    return KernelSettings(
        token_auth_on=settings.token_auth_on,
        manager_uid=settings.manager_uid,
        manager_token=settings.manager_token,
        whitelist_off_of_person=settings.whitelist_off_of_person,
        visitors_on=settings.customer_service.visitors_on,
        visitors_suffix=settings.customer_service.visitors_suffix,
        journal_messages=settings.plugin.journal,
        plugin_timeout_s=settings.plugin.timeout_s,
        max_payload_bytes=settings.limits.payload_bytes,
        max_inflight_bytes=settings.limits.inflight_bytes,
        max_inflight_bytes_per_connection=settings.limits.inflight_per_connection_bytes,
        max_lane_bytes=settings.limits.lane_bytes,
        retry_interval_s=settings.message_retry.interval_s,
        retry_scan_s=settings.message_retry.scan_interval_s,
        retry_max=settings.message_retry.max_count,
    )


def plugin_rules(settings: Settings) -> Rules:
    """Return when the plugin host gives up on a plugin, and what it keeps ready."""
    plugin = settings.plugin
    return Rules(
        crashes=plugin.crashes,
        crash_window_s=plugin.crash_window_s,
        probation_s=plugin.probation_s,
        spare=plugin.spare,
        max_lag=plugin.max_lag,
    )


def call_records(settings: Settings) -> CallRecords:
    """Return where plugins' calls are counted, with the rules of their breakers."""
    plugin = settings.plugin
    return CallRecords(
        BreakerRules(
            failures=plugin.breaker_failures,
            window_s=plugin.breaker_window_s,
            pause_s=plugin.breaker_pause_s,
        )
    )


def _host_port(address: Address) -> tuple[str, int]:
    return address.host, address.port


def store_options(settings: Settings) -> StoreOptions:
    """Return the store's part of the configuration."""
    db = settings.db
    return StoreOptions(
        mem_table_bytes=db.mem_table_bytes,
        block_cache_bytes=db.block_cache_bytes,
        write_buffer_bytes=db.write_buffer_bytes,
        max_open_files=db.max_open_files,
    )


def worker_settings(
    settings: Settings, link_path: str, link_token: str, drain_s: float
) -> WorkerSettings:
    """Return what an API worker is told."""
    return WorkerSettings(
        link_path=link_path,
        link_token=link_token,
        manager_token=settings.manager_token,
        mode=settings.mode,
        drain_s=drain_s,
        max_body_bytes=settings.limits.http_body_bytes,
        log_level=log.level_of(settings.logger.level, debug=settings.debug),
    )
