"""Every metric: name, kind, labels, meaning. Documentation and exposition both come from here.

Label values come from sets that the host knows (plugin numbers, hooks, versions, outcomes, reason
names), never from what a client or a plugin says.
"""

from __future__ import annotations

import msgspec

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

CALL_BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.0),
)
STORE_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

OPERATIONS = ("write", "sync", "read")
_PLUGIN = ("plugin",)
_HOOK = ("plugin", "hook", "version")


class Metric(msgspec.Struct, frozen=True):
    """`bounds` are the upper bounds of a histogram's buckets."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


GUIDE = (
    Metric("wukongim_connections_total", GAUGE, "Connections that are logged in now."),
    Metric("wukongim_messages_sent_total", COUNTER, "Messages accepted, at every door."),
    Metric("wukongim_messages_received_total", COUNTER, "RECVs given to connections."),
    Metric("wukongim_memory_usage_bytes", GAUGE, "Resident memory of the server process."),
    Metric(
        "wukongim_cpu_usage_percent",
        GAUGE,
        "CPU of the server process since the last look, 100 being one core.",
    ),
    Metric("wukongim_cluster_nodes_total", GAUGE, "Nodes of the cluster."),
    Metric("wukongim_cluster_slots_total", GAUGE, "Slots of the cluster; 0 without one."),
    Metric("wukongim_cluster_messages_sync_total", COUNTER, "Messages replicated to other nodes."),
    Metric("wukongim_db_operations_total", COUNTER, "Operations of the store.", ("op",)),
    Metric(
        "wukongim_db_operation_duration_seconds",
        HISTOGRAM,
        "Duration of a batch written (write) and of waiting until it was durable (sync).",
        ("op",),
        STORE_BOUNDS_S,
    ),
)
"""Names that existing dashboards know; always present."""

SERVER = (
    Metric(
        "wukongim_send_answers_total",
        COUNTER,
        "Answers to sends by reason; `plugin` holds the codes that are a plugin's own.",
        ("reason",),
    ),
    Metric("wukongim_users_online", GAUGE, "Users with at least one connection."),
    Metric("wukongim_inflight_bytes", GAUGE, "Bytes of messages between admission and delivery."),
    Metric("wukongim_lanes", GAUGE, "Lanes of sender and channel in which messages wait."),
    Metric("wukongim_channels_active", GAUGE, "Channels in memory."),
    Metric("wukongim_commits_total", COUNTER, "Batches made durable."),
    Metric("wukongim_commit_queue_length", GAUGE, "Messages that wait for the next commit."),
    Metric(
        "wukongim_commit_batch_messages",
        HISTOGRAM,
        "Messages per commit.",
        bounds=BATCH_BOUNDS,
    ),
    Metric(
        "wukongim_commit_duration_seconds",
        HISTOGRAM,
        "Duration of a commit: numbering, writing, fsync, stalls.",
        bounds=STORE_BOUNDS_S,
    ),
    Metric("wukongim_store_stalls_total", COUNTER, "Writes that met a write stall."),
    Metric("wukongim_store_failures_total", COUNTER, "Writes and syncs that the disk refused."),
    Metric("wukongim_store_recoveries_total", COUNTER, "Times the store was reopened."),
    Metric("wukongim_store_rows_written_total", COUNTER, "Rows written."),
    Metric("wukongim_deliveries_pushed_total", COUNTER, "Pushes of messages to connections."),
    Metric("wukongim_deliveries_retried_total", COUNTER, "Deliveries repeated without RECVACK."),
    Metric("wukongim_deliveries_given_up_total", COUNTER, "Deliveries left to history."),
    Metric("wukongim_gateway_connections_opened_total", COUNTER, "Connections accepted."),
    Metric("wukongim_gateway_connections_closed_total", COUNTER, "Connections closed."),
    Metric("wukongim_gateway_connections_open", GAUGE, "Sockets open now, logged in or not."),
    Metric("wukongim_gateway_received_bytes_total", COUNTER, "Bytes read from clients."),
    Metric("wukongim_gateway_sent_bytes_total", COUNTER, "Bytes written to clients."),
    Metric("wukongim_gateway_received_packets_total", COUNTER, "Packets read from clients."),
    Metric("wukongim_gateway_sent_packets_total", COUNTER, "Packets written to clients."),
    Metric("wukongim_gateway_sends_total", COUNTER, "SENDs read from clients."),
    Metric(
        "wukongim_gateway_turned_away_total", COUNTER, "Connections over a limit, not accepted."
    ),
    Metric(
        "wukongim_gateway_slow_consumers_total",
        COUNTER,
        "Connections closed because their output was full.",
    ),
    Metric(
        "wukongim_gateway_dropped_total",
        COUNTER,
        "RECVs without persistence and events that a full output turned away.",
    ),
    Metric(
        "wukongim_gateway_protocol_errors_total", COUNTER, "Connections closed for forbidden bytes."
    ),
    Metric("wukongim_gateway_timeouts_total", COUNTER, "Connections closed for silence."),
    Metric("wukongim_gateway_throttled_total", COUNTER, "Reads put off by a rate limit."),
)

PLUGINS = (
    Metric("wukongim_plugin_up", GAUGE, "1 while a process of the plugin is running.", _PLUGIN),
    Metric("wukongim_plugin_restarts_total", COUNTER, "Starts that nobody asked for.", _PLUGIN),
    Metric("wukongim_plugin_memory_bytes", GAUGE, "Resident memory of its processes.", _PLUGIN),
    Metric(
        "wukongim_plugin_cpu_seconds_total",
        COUNTER,
        "CPU of its running processes; falls when one ends.",
        _PLUGIN,
    ),
    Metric(
        "wukongim_plugin_gives_way",
        GAUGE,
        "1 while the plugin is held to the CPU that others leave.",
        _PLUGIN,
    ),
    Metric("wukongim_plugin_log_lines_total", COUNTER, "Lines of its log kept.", _PLUGIN),
    Metric(
        "wukongim_plugin_log_lines_dropped_total",
        COUNTER,
        "Lines it printed too fast, not kept.",
        _PLUGIN,
    ),
    Metric(
        "wukongim_plugin_sandbox_layer",
        GAUGE,
        "1 where something contains the plugin in this respect, 0 where nothing does.",
        (*_PLUGIN, "layer"),
    ),
    Metric(
        "wukongim_plugin_held_messages", GAUGE, "Messages parked under the hold policy.", _PLUGIN
    ),
    Metric(
        "wukongim_plugin_late_verdicts_total",
        COUNTER,
        "Verdicts that came after the decision and changed nothing.",
        _PLUGIN,
    ),
    Metric(
        "wukongim_plugin_call_duration_seconds",
        HISTOGRAM,
        "From the issue of a call to its answer or to the end of its budget.",
        _HOOK,
        CALL_BOUNDS_S,
    ),
    Metric(
        "wukongim_plugin_calls_total",
        COUNTER,
        "Calls by outcome: continue, replace, refuse, crash, timeout, overload. "
        "Those that a policy decided without asking count too.",
        (*_HOOK, "outcome"),
    ),
    Metric("wukongim_plugin_calls_in_flight", GAUGE, "Calls at the plugin now.", _HOOK),
    Metric("wukongim_plugin_calls_queued", GAUGE, "Calls that wait for its credit.", _HOOK),
    Metric(
        "wukongim_plugin_breaker_state", GAUGE, "0 closed, 1 half-open (probing), 2 open.", _HOOK
    ),
    Metric("wukongim_plugin_breaker_opened_total", COUNTER, "Times its breaker opened.", _HOOK),
    Metric(
        "wukongim_plugin_short_circuits_total",
        COUNTER,
        "Calls that an open breaker kept away; the policy decided at once.",
        _HOOK,
    ),
    Metric(
        "wukongim_plugin_observer_lag_messages",
        GAUGE,
        "Messages of the log that an observing hook has not passed yet.",
        ("plugin", "hook"),
    ),
    Metric(
        "wukongim_plugin_observer_skipped_total",
        COUNTER,
        "Messages an observing hook failed five times, recorded and skipped.",
        ("plugin", "hook"),
    ),
    Metric(
        "wukongim_plugin_observer_dropped_total",
        COUNTER,
        "Messages an observing hook was not given because it lagged beyond plugin.maxLag.",
        ("plugin", "hook"),
    ),
    Metric(
        "wukongim_plugin_egress_connections",
        GAUGE,
        "Connections to the plugin's way out that are open now.",
        _PLUGIN,
    ),
    Metric(
        "wukongim_plugin_egress_accepted_total",
        COUNTER,
        "Tunnels opened, by the entry of the plugin's allow-list that allowed them.",
        (*_PLUGIN, "target"),
    ),
    Metric(
        "wukongim_plugin_egress_refused_total",
        COUNTER,
        "Connections that got no tunnel: wrong_peer, too_many, bad_request, not_listed, "
        "unresolved, address_refused, unreachable.",
        (*_PLUGIN, "reason"),
    ),
    Metric(
        "wukongim_plugin_egress_ended_total",
        COUNTER,
        "Connections that ended by being idle or broken.",
        (*_PLUGIN, "reason"),
    ),
    Metric(
        "wukongim_plugin_egress_bytes_total",
        COUNTER,
        "Bytes through tunnels: sent by the plugin, received by it.",
        (*_PLUGIN, "direction"),
    ),
)

PROCESS = (
    Metric("process_resident_memory_bytes", GAUGE, "Resident memory of the server process."),
    Metric("process_cpu_seconds_total", COUNTER, "User and system CPU of the server process."),
    Metric("process_open_fds", GAUGE, "Open descriptors of the server process."),
    Metric("process_threads", GAUGE, "Threads of the server process."),
    Metric("process_start_time_seconds", GAUGE, "When the server started, since the epoch."),
    Metric("app_conn_count_total", GAUGE, "As wukongim_connections_total."),
    Metric("app_online_user_count_total", GAUGE, "As wukongim_users_online."),
    Metric("go_goroutines", GAUGE, "Tasks of the server's loop, under the name charts use."),
    Metric("go_memstats_alloc_bytes", GAUGE, "As process_resident_memory_bytes."),
    Metric("go_gc_duration_seconds_count", GAUGE, "Runs of the garbage collector."),
)

METRICS = {m.name: m for m in (*GUIDE, *SERVER, *PLUGINS, *PROCESS)}
