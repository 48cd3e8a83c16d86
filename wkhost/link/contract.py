"""The link's contract: everything that may be asked of a running kernel, as request structs.

API workers, the CLI and (later) other machines speak these over the link; plugins reach their part
through gRPC. A request's tag is its name on the wire; `Answer` says which struct answers it.
Errors come back as `Error`. The module imports neither kernel nor store.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

LINK_PROTOCOL = 1
"""Version of this contract; both ends must name the same one in the handshake."""


API_WORKER = "api"
"""Role of the handshake: may ask what the HTTP API needs, but may not change plugins."""
OPERATOR = "operator"
"""Role of the handshake: the operator's CLI, may ask everything."""


class Actor(msgspec.Struct, frozen=True):
    """Who asks: the role it was admitted with, and its process as the operating system names it."""

    role: str
    uid: int
    pid: int


# --- errors ------------------------------------------------------------------------------------


class ErrorKind(StrEnum):
    INVALID = "invalid"
    """The request itself is wrong."""
    UNAVAILABLE = "unavailable"
    """The kernel or its store cannot answer now; the effect of the request is unknown."""
    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    """The role may not ask this."""
    INTERNAL = "internal"


class Error(msgspec.Struct, frozen=True, tag=True):
    """A request failed. `text` is a sentence for people."""

    kind: ErrorKind
    text: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done and durable; there is nothing more to say."""


# --- messages ----------------------------------------------------------------------------------


class SendMessage(msgspec.Struct, tag=True):
    """Send one message through the whole chain; answered when its fate is known.

    For a person chat `channel_id` is the receiver's uid. With `subscribers` the message goes to
    exactly these uids and `channel_id` is empty. Flags are the header nibble.
    """

    from_uid: str
    channel_id: str
    channel_type: int
    payload: bytes
    client_msg_no: str = ""
    flags: int = 0
    setting: int = 0
    expire: int = 0
    topic: str = ""
    subscribers: list[str] = []


class Sent(msgspec.Struct, frozen=True, tag=True):
    """`reason_code` 1: accepted (and durable unless no_persist). Otherwise refused, seq 0."""

    message_id: int
    message_seq: int
    client_msg_no: str
    reason_code: int
    reason: str = ""


class MessageRecord(msgspec.Struct, frozen=True, gc=False):
    """A stored message as asked for; ids are canonical, `from_uid` is not blanked."""

    message_id: int
    message_seq: int
    channel_id: str
    channel_type: int
    from_uid: str
    client_msg_no: str
    payload: bytes
    flags: int
    setting: int
    expire: int
    topic: str
    timestamp: int


class SyncMessages(msgspec.Struct, tag=True):
    """A page of a channel's history, by the rules of `/channel/messagesync`."""

    login_uid: str
    channel_id: str
    channel_type: int
    start_message_seq: int = 0
    end_message_seq: int = 0
    limit: int = 0
    pull_mode: int = 0


class MessagePage(msgspec.Struct, frozen=True, tag=True):
    messages: list[MessageRecord]
    more: bool


class GetMaxMessageSeq(msgspec.Struct, tag=True):
    """`login_uid` is needed for a person channel named by its peer."""

    channel_id: str
    channel_type: int
    login_uid: str = ""


class MaxMessageSeq(msgspec.Struct, frozen=True, tag=True):
    message_seq: int


# --- users -------------------------------------------------------------------------------------


class SetUserToken(msgspec.Struct, tag=True):
    uid: str
    token: str
    device_flag: int = 0
    device_level: int = 0


class UserStatus(msgspec.Struct, frozen=True, tag=True):
    """`status` 200, or 19 (banned), 24 (disbanded) when nothing was done."""

    status: int


class AddSystemUids(msgspec.Struct, tag=True):
    uids: list[str]


# --- channels ----------------------------------------------------------------------------------


class Subscriber(msgspec.Struct, frozen=True, gc=False):
    """`role`: 0 member, 1 owner or manager; stored, ignored by permissions."""

    uid: str
    role: int = 0


class SetChannel(msgspec.Struct, tag=True):
    """Create or overwrite a channel's record; then add `subscribers` (after clearing on reset)."""

    channel_id: str
    channel_type: int
    large: bool = False
    ban: bool = False
    disband: bool = False
    send_ban: bool = False
    allow_stranger: bool = False
    reset: bool = False
    subscribers: list[Subscriber] = []


class AddSubscribers(msgspec.Struct, tag=True):
    """Creates the channel if missing; `reset` replaces the list."""

    channel_id: str
    channel_type: int
    subscribers: list[Subscriber]
    reset: bool = False


class RemoveSubscribers(msgspec.Struct, tag=True):
    channel_id: str
    channel_type: int
    uids: list[str]


class AddToDenylist(msgspec.Struct, tag=True):
    channel_id: str
    channel_type: int
    uids: list[str]


class AddToAllowlist(msgspec.Struct, tag=True):
    channel_id: str
    channel_type: int
    uids: list[str]


# --- server ------------------------------------------------------------------------------------


class GetHealth(msgspec.Struct, tag=True):
    pass


class Health(msgspec.Struct, frozen=True, tag=True):
    """`text` says what is wrong when not ok."""

    ok: bool
    text: str = ""


class GetStatistics(msgspec.Struct, tag=True):
    pass


class Statistics(msgspec.Struct, frozen=True, tag=True):
    """Counters and sizes by part, for people and for the monitor."""

    parts: dict[str, Any]


# --- plugins (operators only, but for listing) --------------------------------------------------


class InspectPlugin(msgspec.Struct, tag=True):
    """Ask what `source` is and what it asks for; answered with PluginProposal. Nothing is
    installed."""

    source: str


class CapabilityAsk(msgspec.Struct, frozen=True):
    """One thing that a plugin asks for. `text` completes "it may ...". `settled`: granted to the
    version before, or denied for good."""

    name: str
    text: str
    dangerous: bool
    settled: bool


class PluginProposal(msgspec.Struct, frozen=True, tag=True):
    """What an install would agree to. `digest` names exactly the files that were looked at.

    `installed` is the version that is there now, `denied` what was revoked from the plugin,
    `dropped` what was granted and is not asked for any more. `needs` tells, by the flag of
    `InstallPlugin` that allows it, why the install would be refused.
    """

    no: str
    version: str
    digest: str
    name: str
    description: str
    builtin: bool
    installed: str
    asks: list[CapabilityAsk]
    denied: list[str]
    dropped: list[str]
    needs: dict[str, str]


class InstallPlugin(msgspec.Struct, tag=True):
    """Install from a folder or archive on the server's machine, or a built-in by its name.

    `digest` is the one that the operator has agreed to; a built-in needs none. `granted` names the
    capabilities agreed to (None: all that it asks for), `withhold` those denied to it for good. An
    upgrade that asks for more than was granted is kept and waits, see `UpgradePlugin`.
    """

    source: str
    enable: bool = True
    digest: str = ""
    granted: list[str] | None = None
    withhold: list[str] = []
    replace_source: bool = False
    allow_downgrade: bool = False


class UpgradePlugin(msgspec.Struct, tag=True):
    """Agree to a version that waits and use it. `digest` is the whole digest of that version."""

    no: str
    digest: str
    granted: list[str]


class RollbackPlugin(msgspec.Struct, tag=True):
    """Go back to a version or a snapshot; empty: to what was there before the last change."""

    no: str
    to: str = ""


class GrantPlugin(msgspec.Struct, tag=True):
    """Grant a capability that the plugin asks for, or (`granted` False) deny it; from its next call
    on."""

    no: str
    capability: str
    granted: bool


class GetPluginVersions(msgspec.Struct, tag=True):
    no: str


class PluginRelease(msgspec.Struct, frozen=True):
    """One installed version. `waiting` is what nobody has agreed to yet; `withdrawn` says why it
    was taken back. Times are seconds since 1970."""

    version: str
    digest: str
    source: str
    installed_at: float
    in_use: bool
    waiting: list[CapabilityAsk]
    withdrawn: str


class PluginSnapshot(msgspec.Struct, frozen=True):
    """What is kept of a version that was left: values, settings and observers' places."""

    name: str
    version: str
    taken_at: float
    why: str


class PluginRight(msgspec.Struct, frozen=True):
    """One thing that the version in use asks for, and whether it has it."""

    name: str
    text: str
    dangerous: bool
    granted: bool


class PluginVersions(msgspec.Struct, frozen=True, tag=True):
    no: str
    releases: list[PluginRelease]
    snapshots: list[PluginSnapshot]
    rights: list[PluginRight]


class PluginAction(msgspec.Struct, tag=True):
    """`action`: enable, disable, reload or uninstall."""

    no: str
    action: str


class ListPlugins(msgspec.Struct, tag=True):
    pass


class GetPlugin(msgspec.Struct, tag=True):
    no: str


class PluginStatus(msgspec.Struct, frozen=True, tag=True):
    """One plugin as the operator sees it. `hooks` maps hook name to policy.

    `state`: disabled, starting, running, reloading, backoff, failed, quarantined, stopped. `detail`
    says why in one sentence where it is not running; `last_lines` are what a quarantined one had
    printed last.
    """

    no: str
    version: str
    enabled: bool
    state: str
    detail: str = ""
    generation: int = 0
    pid: int = 0
    restarts: int = 0
    stage: str = ""
    priority: int = 0
    hooks: dict[str, str] = {}
    rss_bytes: int = 0
    cpu_s: float = 0.0
    calls: dict[str, dict[str, int]] = {}
    """hook -> outcome -> count."""
    breakers: dict[str, str] = {}
    """hook -> closed, half_open or open; of the hooks that have been called."""
    last_lines: list[str] = []


class PluginList(msgspec.Struct, frozen=True, tag=True):
    plugins: list[PluginStatus]


class GetPluginLogs(msgspec.Struct, tag=True):
    """Lines after position `after` (0 = the last `limit` kept lines)."""

    no: str
    after: int = 0
    limit: int = 200


class PluginLogs(msgspec.Struct, frozen=True, tag=True):
    lines: list[str]
    next: int


class GetPluginOrder(msgspec.Struct, tag=True):
    pass


class PluginOrder(msgspec.Struct, frozen=True, tag=True):
    """Per hook the plugins in the order they are asked, each with the reason for its place."""

    hooks: dict[str, list[tuple[str, str]]]


class GetPluginSandbox(msgspec.Struct, tag=True):
    """Ask what contains the active plugins, and what this machine can do."""


class PluginContainment(msgspec.Struct, frozen=True):
    """`mode` is strict, auto or off; `required` layers must hold, or the plugin is not started.

    `layers` says in words what holds. `refusal` is why it would not be started.
    """

    no: str
    mode: str
    required: list[str]
    layers: dict[str, str]
    refusal: str = ""


class PluginSandbox(msgspec.Struct, frozen=True, tag=True):
    """`held` are the layers whose probe stopped every attack; `missing` says why not, and the fix.

    `bubblewrap` tells path, origin, version and SHA-256.
    """

    bubblewrap: str
    held: list[str]
    missing: dict[str, str]
    plugins: list[PluginContainment] = []


# --- plugin settings, secrets and audit (operators only) -----------------------------------------


class GetPluginConfig(msgspec.Struct, tag=True):
    no: str


class ConfigVersion(msgspec.Struct, frozen=True):
    """What the operator had set at one time. `time` is seconds since 1970, `by` the uid."""

    number: int
    time: float
    by: int
    overrides: dict[str, Any]


class PluginConfig(msgspec.Struct, frozen=True, tag=True):
    """A plugin's settings: the values that hold, and what the operator has set of them.

    `schema` is a JSON Schema of what may be set; `history` has the newest version last, which is
    the one that holds. Secrets are named, with whether they have a value; no value is ever here.
    """

    no: str
    number: int
    values: dict[str, Any]
    schema: dict[str, Any]
    history: list[ConfigVersion]
    secrets: dict[str, bool] = {}


class SetPluginConfig(msgspec.Struct, tag=True):
    """Change settings, all or none; answered with PluginConfig.

    `expect` is the number that the change was made against (0: whichever holds). `restore` names an
    earlier version that is taken back whole before `values` and `unset` apply. With `reload` the
    plugin is not asked: it is started anew with the settings, and they hold if it starts.
    """

    no: str
    values: dict[str, Any] = {}
    unset: list[str] = []
    restore: int = 0
    expect: int = 0
    reload: bool = False


class SetPluginSecret(msgspec.Struct, tag=True):
    """Set (`value`), replace (`rotate`: it must be set) or remove (`value` None) a secret."""

    no: str
    key: str
    value: str | None
    rotate: bool = False

    def __repr__(self) -> str:
        return f"SetPluginSecret(no={self.no!r}, key={self.key!r})"


class GetPluginSecrets(msgspec.Struct, tag=True):
    no: str


class PluginSecrets(msgspec.Struct, frozen=True, tag=True):
    """Names of the secrets that the plugin declares -> when each was set (0: it has no value)."""

    no: str
    set_at: dict[str, float]


class GetPluginAudit(msgspec.Struct, tag=True):
    """The newest `limit` records; with `verify` the whole log is checked instead."""

    limit: int = 100
    verify: bool = False


class PluginAudit(msgspec.Struct, frozen=True, tag=True):
    """Records as they stand in the log, oldest first, or what a check of it has found.

    `problem` is empty when the chain is whole.
    """

    records: list[dict[str, Any]]
    count: int = 0
    last_seq: int = 0
    last_hash: str = ""
    problem: str = ""


class GetPluginFigures(msgspec.Struct, tag=True):
    pass


class HookFigures(msgspec.Struct, frozen=True):
    """One plugin's version at one hook. Counts are totals since the server started.

    `durations` counts calls per bucket of `AllPluginFigures.bounds_s` (not cumulative; one more
    holds the rest). `breaker` is closed, half_open or open; it, `in_flight` and `queued` are of the
    version that runs now and empty for others. `lag` is how many messages of the log an observing
    hook has not passed yet, None for other hooks; `skipped` and `dropped` are messages it never
    got, since its observer started.
    """

    hook: str
    version: str
    outcomes: dict[str, int]
    durations: list[int]
    total_s: float
    short_circuits: int
    breaker_opened: int
    breaker: str = ""
    in_flight: int = 0
    queued: int = 0
    lag: int | None = None
    skipped: int = 0
    dropped: int = 0


class EgressFigures(msgspec.Struct, frozen=True):
    """A plugin's way out: connections `open` now, tunnels `accepted` by entry of its allow-list,
    connections `refused` by reason, `ended` by being idle or broken, and bytes each way."""

    open: int
    accepted: dict[str, int]
    refused: dict[str, int]
    ended: dict[str, int]
    sent_bytes: int
    received_bytes: int


class PluginFigures(msgspec.Struct, frozen=True):
    """`rss_bytes` and `cpu_s` are of the plugin's whole process tree. `gives_way`: it is held to
    the CPU that others leave. `layers` says in words what contains it, layer by layer; "none" where
    nothing does. `egress` is None where it never had a way out."""

    no: str
    version: str
    state: str
    generation: int
    pid: int
    restarts: int
    rss_bytes: int
    cpu_s: float
    log_lines: int
    log_lines_dropped: int
    hooks: list[HookFigures]
    layers: dict[str, str] = {}
    egress: EgressFigures | None = None
    gives_way: bool = False


class AllPluginFigures(msgspec.Struct, frozen=True, tag=True):
    """`at` is seconds on the server's monotonic clock."""

    at: float
    bounds_s: list[float]
    plugins: list[PluginFigures]


class ExplainMessage(msgspec.Struct, tag=True):
    """Ask what plugins decided about a message, stored or refused."""

    message_id: int


class PluginDecision(msgspec.Struct, frozen=True):
    """What one plugin said. `outcome` is empty while it has not answered.

    `asked` is False where the policy decided without a call; `took_s` is 0.0 then. `policy` is set
    where a failure became a decision, `code` and `text` where the message was refused here.
    """

    no: str
    version: str
    generation: int
    asked: bool
    outcome: str
    took_s: float
    policy: str = ""
    code: int = 0
    text: str = ""


class PluginObservation(msgspec.Struct, frozen=True):
    """Whether an observing hook has passed a stored message that concerns it."""

    no: str
    hook: str
    seen: bool


class MessageTrail(msgspec.Struct, frozen=True, tag=True):
    """Who decided what about a message.

    `fate` is stored, refused, waiting, passed or unknown. `door` is client, http or a plugin's
    number, and empty where only the store knows the message; `at` is seconds since the epoch. A
    message that concerned no plugin is known only if it was stored or refused; one that the server
    refused itself has no decision with a code.
    """

    message_id: int
    fate: str
    door: str = ""
    from_uid: str = ""
    channel_id: str = ""
    channel_type: int = 0
    at: float = 0.0
    message_seq: int = 0
    reason_code: int = 0
    reason: str = ""
    decisions: list[PluginDecision] = []
    observations: list[PluginObservation] = []


class GetPluginValues(msgspec.Struct, tag=True):
    """Read a plugin's key-value store after `after`, for a trial run with copies of it."""

    no: str
    after: bytes = b""


class PluginValues(msgspec.Struct, frozen=True, tag=True):
    """Keys and values in the order of keys. `more`: ask again after the last key."""

    values: list[tuple[bytes, bytes]]
    more: bool


# --- metrics -----------------------------------------------------------------------------------


class GetMetrics(msgspec.Struct, tag=True):
    pass


class Metrics(msgspec.Struct, frozen=True, tag=True):
    """All samples by metric name; `wkhost.metrics` says what each is and how it is written.

    A sample is the values of the metric's labels and its value; a histogram's value is its counts
    per bucket (not cumulative) and the sum.
    """

    numbers: dict[str, list[tuple[list[str], float]]]
    histograms: dict[str, list[tuple[list[str], list[int], float]]]


PluginRequest = (
    InspectPlugin
    | InstallPlugin
    | UpgradePlugin
    | RollbackPlugin
    | GrantPlugin
    | GetPluginVersions
    | PluginAction
    | ListPlugins
    | GetPlugin
    | GetPluginLogs
    | GetPluginOrder
    | GetPluginSandbox
    | GetPluginConfig
    | SetPluginConfig
    | SetPluginSecret
    | GetPluginSecrets
    | GetPluginAudit
    | GetPluginFigures
    | GetPluginValues
)
"""What the plugin host answers."""

Request = (
    SendMessage
    | SyncMessages
    | GetMaxMessageSeq
    | SetUserToken
    | AddSystemUids
    | SetChannel
    | AddSubscribers
    | RemoveSubscribers
    | AddToDenylist
    | AddToAllowlist
    | GetHealth
    | GetStatistics
    | GetMetrics
    | ExplainMessage
    | PluginRequest
)

Response = (
    Error
    | Done
    | Sent
    | MessagePage
    | MaxMessageSeq
    | UserStatus
    | Health
    | Statistics
    | PluginProposal
    | PluginVersions
    | PluginStatus
    | PluginList
    | PluginLogs
    | PluginOrder
    | PluginSandbox
    | PluginConfig
    | PluginSecrets
    | PluginAudit
    | AllPluginFigures
    | MessageTrail
    | PluginValues
    | Metrics
)
