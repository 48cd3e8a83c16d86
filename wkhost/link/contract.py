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


class InstallPlugin(msgspec.Struct, tag=True):
    """Install from a folder or archive on the server's machine, or a built-in by its name."""

    source: str
    enable: bool = True


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

    `state`: disabled, starting, running, reloading, backoff, failed, stopped. `detail` says why in
    one sentence where it is not running.
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


PluginRequest = (
    InstallPlugin
    | PluginAction
    | ListPlugins
    | GetPlugin
    | GetPluginLogs
    | GetPluginOrder
    | GetPluginConfig
    | SetPluginConfig
    | SetPluginSecret
    | GetPluginSecrets
    | GetPluginAudit
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
    | PluginStatus
    | PluginList
    | PluginLogs
    | PluginOrder
    | PluginConfig
    | PluginSecrets
    | PluginAudit
)
