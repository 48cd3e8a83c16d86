"""The settings tree: every setting the server knows, frozen, each with its key, unit and sentence.

Field names are the keys in snake case, with a unit where there is one (`_s` seconds, `_bytes`).
A setting marked `used=False` is read and checked, but nothing acts on it yet; whoever sets it is
told so once. Where the values come from is the business of `load.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wkhost.config.spec import setting
from wkhost.config.values import (
    BOOLEAN,
    DURATION,
    INIT_NODES,
    PATH,
    SIZE,
    STRINGS,
    TEXT,
    Address,
    InitNode,
    address,
    choice,
    number,
)


@dataclass(frozen=True, slots=True)
class WssConfig:
    cert_file: Path | None = setting(
        "wssConfig.certFile",
        None,
        PATH,
        "PEM file with the certificate chain of the WSS listener; read again on SIGHUP.",
    )
    key_file: Path | None = setting(
        "wssConfig.keyFile", None, PATH, "PEM file with the private key of the certificate."
    )


@dataclass(frozen=True, slots=True)
class External:
    ip: str = setting("external.ip", "", TEXT, "Address that clients are told.", used=False)
    tcp_addr: str = setting(
        "external.tcpAddr", "", TEXT, "TCP address that clients are told.", used=False
    )
    ws_addr: str = setting(
        "external.wsAddr", "", TEXT, "WebSocket address that clients are told.", used=False
    )
    wss_addr: str = setting(
        "external.wssAddr", "", TEXT, "Secure WebSocket address that clients are told.", used=False
    )
    manager_addr: str = setting(
        "external.managerAddr", "", TEXT, "Address of the manager page seen outside.", used=False
    )
    api_url: str = setting(
        "external.apiUrl", "", TEXT, "URL of the business API seen from outside.", used=False
    )
    auto_get_external_ip: bool = setting(
        "external.autoGetExternalIP",
        False,
        BOOLEAN,
        "Ask a service for the own public address.",
        used=False,
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    node_id: int = setting(
        "cluster.nodeId", 1001, number(1, 1023), "Number of this node; part of every message id."
    )
    server_addr: str = setting(
        "cluster.serverAddr", "", TEXT, "Address that other nodes use.", used=False
    )
    init_nodes: tuple[InitNode, ...] = setting(
        "cluster.initNodes", (), INIT_NODES, "Members of a new cluster.", used=False
    )


@dataclass(frozen=True, slots=True)
class Manager:
    on: bool = setting(
        "manager.on",
        True,
        BOOLEAN,
        "Serve metrics (and later the manager API and page).",
        aliases=("monitor.on",),
    )
    addr: Address = setting(
        "manager.addr",
        Address("", "0.0.0.0", 5300),
        address("", "0.0.0.0:5300"),
        "Where metrics (and later the manager API and page) are served.",
        aliases=("monitor.addr",),
    )


@dataclass(frozen=True, slots=True)
class Webhook:
    http_addr: str = setting(
        "webhook.httpAddr",
        "",
        TEXT,
        "URL that receives events; empty sends none.",
        aliases=("webhook.httpUrl",),
        used=False,
    )
    grpc_addr: str = setting(
        "webhook.grpcAddr", "", TEXT, "gRPC address that receives events.", used=False
    )
    focus_events: tuple[str, ...] = setting(
        "webhook.focusEvents",
        (),
        STRINGS,
        "Events to send; empty sends all.",
        aliases=("webhook.events",),
        used=False,
    )
    push_interval_s: float = setting(
        "webhook.msgNotifyEventPushInterval",
        0.5,
        DURATION,
        "Longest time that message events are collected before a post.",
        used=False,
    )
    count_per_push: int = setting(
        "webhook.msgNotifyEventCountPerPush",
        100,
        number(1, 100_000),
        "Most message events in one post.",
        aliases=("webhook.countPerPush",),
        used=False,
    )
    retry_max_count: int = setting(
        "webhook.msgNotifyEventRetryMaxCount",
        5,
        number(1, 1_000_000),
        "Tries of a post before its events are dropped.",
        aliases=("webhook.retryMaxCount",),
        used=False,
    )


@dataclass(frozen=True, slots=True)
class Plugin:
    on: bool = setting("plugin.on", True, BOOLEAN, "Run plugins at all.")
    dir: Path | None = setting(
        "plugin.dir", None, PATH, "Where installed plugins live; empty means rootDir/plugins."
    )
    timeout_s: float = setting(
        "plugin.timeout", 1.0, DURATION, "Time that all plugins together have to decide a message."
    )
    journal: int = setting(
        "plugin.journal",
        20_000,
        number(1, 1_000_000),
        "Messages whose decisions are remembered for `wkhost plugin why`.",
    )
    breaker_failures: int = setting(
        "plugin.breakerFailures",
        5,
        number(1, 1000),
        "Failures of one plugin and hook within the window that open its breaker.",
    )
    breaker_window_s: float = setting(
        "plugin.breakerWindow", 10.0, DURATION, "Window in which such failures count."
    )
    breaker_pause_s: float = setting(
        "plugin.breakerPause",
        1.0,
        DURATION,
        "Time from a breaker's opening to its first probe; doubles up to 30 s while probes fail.",
    )
    crashes: int = setting(
        "plugin.crashes",
        10,
        number(1, 100_000),
        "Deaths of one plugin within the window that put it into quarantine.",
    )
    crash_window_s: float = setting(
        "plugin.crashWindow", 120.0, DURATION, "Window in which such deaths count."
    )
    probation_s: float = setting(
        "plugin.probation",
        60.0,
        DURATION,
        "Time after an upgrade in which the version before comes back by itself if the new one is "
        "worse.",
    )
    spare: bool = setting(
        "plugin.spare",
        False,
        BOOLEAN,
        "Keep a second process of every plugin ready; a manifest can ask for its own alone.",
    )
    max_lag: int = setting(
        "plugin.maxLag",
        0,
        number(0, 2**53),
        "Messages that an observing plugin may lag behind before the oldest are dropped; 0 means "
        "any number.",
    )
    use: tuple[str, ...] | None = setting(
        "plugin.use",
        None,
        STRINGS,
        "Start with exactly these plugins; empty starts those enabled in the data directory.",
    )
    sandbox: str = setting(
        "plugin.sandbox",
        "auto",
        choice("strict", "auto", "off"),
        "strict starts a plugin only with every layer of the sandbox; auto with file system, "
        "network, processes and system calls, and what more the machine has; off without.",
    )
    sandbox_of: tuple[str, ...] | None = setting(
        "plugin.sandboxOf",
        None,
        STRINGS,
        "Another mode for single plugins: `NO=strict`, `NO=auto`, `NO=off`.",
    )
    first_uid: int = setting(
        "plugin.firstUid",
        1_879_100_000,
        number(1000, 4_294_000_000),
        "As root each plugin gets a uid of its own: this one or one of the 65,535 after it.",
    )
    secret_key_file: Path | None = setting(
        "plugin.secretKeyFile",
        None,
        PATH,
        "Key that seals plugins' secrets, outside rootDir, mode 0600; empty means the credential "
        "wkhost-secrets of the service manager, if there is one.",
    )
    egress_allow: tuple[str, ...] | None = setting(
        "plugin.egressAllow",
        None,
        STRINGS,
        "Hosts that plugins may reach besides those of their manifest: "
        "`moderation=api.example.com:443`, `NO=*.example.com:443`.",
    )
    egress_private: tuple[str, ...] | None = setting(
        "plugin.egressPrivate",
        None,
        STRINGS,
        "Addresses that are not public but that plugins may reach where a host that they may "
        "reach is there: `10.0.0.5:8443`, `10.0.0.0/24`, `[fd00::5]:443`.",
    )


@dataclass(frozen=True, slots=True)
class Logger:
    level: int = setting(
        "logger.level",
        0,
        number(1, 4),
        "1 debug, 2 info, 3 warnings, 4 errors; 0 is debug in mode debug and info otherwise.",
    )
    line_num: bool = setting(
        "logger.lineNum", False, BOOLEAN, "Add file and line of the code to each log line."
    )


@dataclass(frozen=True, slots=True)
class Db:
    mem_table_bytes: int = setting(
        "db.memTableSize", 16 << 20, SIZE, "One table's buffer is written out at this size."
    )
    block_cache_bytes: int = setting(
        "db.blockCacheSize", 64 << 20, SIZE, "Memory for blocks, indexes and filters of files."
    )
    write_buffer_bytes: int = setting(
        "db.writeBufferSize", 64 << 20, SIZE, "All buffers together are written out at this size."
    )
    max_open_files: int = setting(
        "db.maxOpenFiles", 1000, number(16, 1_000_000), "Table files kept open."
    )


@dataclass(frozen=True, slots=True)
class CustomerService:
    visitors_on: bool = setting(
        "customerService.visitorsOn",
        False,
        BOOLEAN,
        "Let users with the visitor suffix log in without a token.",
    )
    visitors_suffix: str = setting(
        "customerService.visitorsSuffix", "___vstr", TEXT, "Ending that marks a visitor's uid."
    )


@dataclass(frozen=True, slots=True)
class MessageRetry:
    interval_s: float = setting(
        "messageRetry.interval",
        60.0,
        DURATION,
        "Time after which an unacknowledged message is delivered again.",
    )
    scan_interval_s: float = setting(
        "messageRetry.scanInterval", 30.0, DURATION, "Time between two looks for such messages."
    )
    max_count: int = setting(
        "messageRetry.maxCount",
        5,
        number(1, 1000),
        "Repeated deliveries on one connection before giving up; history keeps the message.",
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep one peer from harming the others; these keys are our own."""

    frame_bytes: int = setting(
        "limits.frame", 1 << 20, SIZE, "Largest body of one frame; more closes the connection."
    )
    payload_bytes: int = setting(
        "limits.payload", 512 << 10, SIZE, "Largest payload of one message, at every door."
    )
    http_body_bytes: int = setting(
        "limits.httpBody", 10 << 20, SIZE, "Largest body of a request to the business API."
    )
    outbox_bytes: int = setting(
        "limits.outbox",
        64 << 10,
        SIZE,
        "Output that may wait for one connection before it counts as too slow.",
    )
    connections: int = setting(
        "limits.connections", 0, number(1, 10_000_000), "Most open client connections; 0: no limit."
    )
    connections_per_address: int = setting(
        "limits.connectionsPerAddress",
        0,
        number(1, 10_000_000),
        "Most open client connections from one address; 0: no limit.",
    )
    frames_per_second: int = setting(
        "limits.framesPerSecond",
        0,
        number(1, 1_000_000),
        "Frames read per second from one connection, more wait; 0: no limit.",
    )
    bytes_per_second: int = setting(
        "limits.bytesPerSecond",
        0,
        SIZE,
        "Bytes read per second from one connection, more wait; 0: no limit.",
    )
    inflight_bytes: int = setting(
        "limits.inflight",
        64 << 20,
        SIZE,
        "Payloads between admission and delivery, of all senders; more get reason 22.",
    )
    inflight_per_connection_bytes: int = setting(
        "limits.inflightPerConnection",
        4 << 20,
        SIZE,
        "Payloads between admission and delivery, of one connection; more get reason 22.",
    )
    lane_bytes: int = setting(
        "limits.lane",
        4 << 20,
        SIZE,
        "Payloads that may wait for verdicts, of one sender in one channel; more get reason 22.",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. `Settings()` holds the defaults."""

    mode: str = setting(
        "mode",
        "release",
        choice("debug", "release", "bench", "test"),
        "Debug logs more; the others change nothing.",
    )
    addr: Address = setting(
        "addr",
        Address("tcp", "0.0.0.0", 5100),
        address("tcp", "tcp://0.0.0.0:5100"),
        "Where TCP clients connect.",
    )
    ws_addr: Address = setting(
        "wsAddr",
        Address("ws", "0.0.0.0", 5200),
        address("ws", "ws://0.0.0.0:5200"),
        "Where WebSocket clients connect.",
    )
    wss_addr: Address | None = setting(
        "wssAddr",
        None,
        address("wss", "wss://0.0.0.0:5210"),
        "Where secure WebSocket clients connect; off when empty or without a certificate.",
    )
    http_addr: Address = setting(
        "httpAddr",
        Address("", "0.0.0.0", 5001),
        address("", "0.0.0.0:5001"),
        "Where the business API listens.",
    )
    root_dir: Path = setting(
        "rootDir", Path("wkhost-data"), PATH, "Folder of everything the server keeps."
    )
    data_dir: Path | None = setting(
        "dataDir", None, PATH, "Folder of the message store; empty means rootDir/data."
    )
    token_auth_on: bool = setting(
        "tokenAuthOn", False, BOOLEAN, "Check each login against the token set by /user/token."
    )
    manager_uid: str = setting("managerUID", "____manager", TEXT, "Uid of the manager.")
    manager_token: str = setting(
        "managerToken",
        "",
        TEXT,
        "Token that every API request and the manager's login must show; empty asks for none.",
        secret=True,
    )
    connect_timeout_s: float = setting(
        "connectTimeout", 30.0, DURATION, "Time from the connection to a valid CONNECT."
    )
    conn_idle_time_s: float = setting(
        "connIdleTime", 180.0, DURATION, "Silence after which a connection is closed."
    )
    disable_encryption: bool = setting(
        "disableEncryption", False, BOOLEAN, "Send payloads unencrypted (some clients need keys)."
    )
    disable_jsonrpc: bool = setting(
        "disableJSONRPC", False, BOOLEAN, "Refuse JSON-RPC on the client ports."
    )
    whitelist_off_of_person: bool = setting(
        "whitelistOffOfPerson", True, BOOLEAN, "Do not enforce allow lists in person chats."
    )
    wss_config: WssConfig = WssConfig()
    external: External = External()
    cluster: Cluster = Cluster()
    manager: Manager = Manager()
    webhook: Webhook = Webhook()
    plugin: Plugin = Plugin()
    logger: Logger = Logger()
    db: Db = Db()
    customer_service: CustomerService = CustomerService()
    message_retry: MessageRetry = MessageRetry()
    limits: Limits = Limits()

    @property
    def data_path(self) -> Path:
        """Folder of the message store, absolute."""
        return (self.data_dir or self.root_dir / "data").absolute()

    @property
    def plugin_path(self) -> Path:
        """Folder of the installed plugins, absolute."""
        return (self.plugin.dir or self.root_dir / "plugins").absolute()

    @property
    def debug(self) -> bool:
        return self.mode == "debug"
