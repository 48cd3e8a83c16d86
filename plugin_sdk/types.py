"""What plugin authors see and answer. Conversion to and from the wire lives in convert.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, final

MAX_REFUSE_TEXT_BYTES: Final = 256


def _wire(path: str, doc: str) -> Any:
    """Make a read-only attribute over the wire object; attrgetter keeps the read in C."""
    return property(attrgetter(path), doc=doc)


@final
class Message:
    """One message, read-only. A field is read from the wire when asked for: unused ones are free.

    `payload` is empty unless the plugin was granted payloads of the hook.
    """

    __slots__ = ("_call", "_wire")
    _call: Any
    _wire: Any

    message_id: int = _wire("_wire.message_id", "Unique number, given at admission.")
    message_seq: int = _wire("_wire.message_seq", "Place in its channel; 0 until stored.")
    channel_id: str = _wire("_wire.channel_id", "Stored id; a person chat is 'u2@u1'.")
    channel_type: int = _wire("_wire.channel_type", "1 person, 2 group, and so on.")
    from_uid: str = _wire("_wire.from_uid", "The sender's uid.")
    client_msg_no: str = _wire("_wire.client_msg_no", "The sender's own number of the message.")
    payload: bytes = _wire("_wire.payload", "The body, bytes.")
    timestamp: int = _wire("_wire.timestamp", "Seconds since the epoch; 0 until stored.")
    expire: int = _wire("_wire.expire", "Seconds; 0 = never.")
    topic: str = _wire("_wire.topic", "Topic, often empty.")
    no_persist: bool = _wire("_wire.no_persist", "Not stored.")
    red_dot: bool = _wire("_wire.red_dot", "Counts as unread.")
    sync_once: bool = _wire("_wire.sync_once", "A command message.")

    def __init__(self) -> None:
        raise TypeError("messages come from the host; in a test use PluginTest.message(...)")

    @property
    def origin(self) -> Origin:
        """Where it came in. Known in `send` only; elsewhere the door is ''."""
        call = self._call
        if not hasattr(call, "origin"):
            return Origin()
        return Origin(call.origin, call.conn_id, call.device_id, call.device_flag)

    @property
    def budget_ms(self) -> int:
        """Milliseconds that were left for the answer when the call was issued; 0 outside hooks."""
        return getattr(self._call, "budget_ms", 0)

    @property
    def attempt(self) -> int:
        """1, or 2 when the call was issued again after a planned reload."""
        return getattr(self._call, "attempt", 1)

    @property
    def lineage(self) -> bytes:
        """Proof of what caused a send; `host.send_message` takes it by itself."""
        return getattr(self._call, "lineage", b"")

    def json(self) -> Any:
        """Decode the payload as JSON. Raises ValueError when it is none."""
        return json.loads(self.payload)

    @property
    def text(self) -> str:
        """The text of a text message (JSON with type 1 and a string `content`), else ''."""
        if not self.payload.startswith(b"{"):
            return ""
        try:
            body = json.loads(self.payload)
        except ValueError:
            return ""
        content = body.get("content")
        return content if body.get("type") == 1 and isinstance(content, str) else ""

    def __repr__(self) -> str:
        return (
            f"Message(message_id={self.message_id}, channel_id={self.channel_id!r}, "
            f"channel_type={self.channel_type}, from_uid={self.from_uid!r}, "
            f"payload=<{len(self.payload)} bytes>)"
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """The door of a message: "client", "http" or a plugin's number, and the sending device."""

    door: str = ""
    conn_id: int = 0
    device_id: str = ""
    device_flag: int = 0


@final
@dataclass(frozen=True, slots=True)
class Continue:
    """Go on unchanged; the same as returning None."""


@final
class Replace:
    """Go on with another payload (`send` only)."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        if not isinstance(payload, bytes):
            raise TypeError(f"Replace: payload: expected bytes, got {type(payload).__name__}")
        self.payload = payload

    @classmethod
    def json(cls, value: Any) -> Replace:
        """Replace by `value` as compact JSON in UTF-8."""
        return cls(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    def __repr__(self) -> str:
        return f"Replace(<{len(self.payload)} bytes>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Replace) and other.payload == self.payload

    def __hash__(self) -> int:
        return hash(self.payload)


@final
@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse for good. The client sees `code` (2 to 255) and, where it can be carried, `text`
    (at most 256 bytes of UTF-8 without control characters). May be made once and returned often."""

    code: int
    text: str = ""

    def __post_init__(self) -> None:
        code = self.code
        if not isinstance(code, int) or isinstance(code, bool):
            raise TypeError(f"Refuse: code: expected an integer, got {type(code).__name__}")
        if not 2 <= code <= 255:
            raise ValueError(f"Refuse: code: expected 2 to 255, got {code}")
        check_text("Refuse", self.text)


@final
@dataclass(frozen=True, slots=True)
class Veto:
    """Say no to a configuration, or report ill health; `text` tells the operator why."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("Veto: text: expected a reason, got an empty text")
        check_text("Veto", self.text)


def check_text(owner: str, text: str) -> None:
    """Raise unless `text` may travel in a refusal."""
    if not isinstance(text, str):
        raise TypeError(f"{owner}: text: expected a string, got {type(text).__name__}")
    if text.isprintable() and len(text) * 4 <= MAX_REFUSE_TEXT_BYTES:
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{owner}: text: expected valid Unicode, got a lone surrogate") from None
    if size > MAX_REFUSE_TEXT_BYTES:
        limit = MAX_REFUSE_TEXT_BYTES
        raise ValueError(f"{owner}: text: expected at most {limit} bytes of UTF-8, got {size}")
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in text):
        raise ValueError(f"{owner}: text: expected no control characters, got {text!r}")


@dataclass(frozen=True, slots=True)
class ChannelQuery:
    """The kernel needs a channel's record."""

    channel_id: str
    channel_type: int
    budget_ms: int = 0


@final
@dataclass(frozen=True, slots=True)
class ChannelAnswer:
    """Fields that are not None override the kernel's record for `ttl_ms` (0 = this once)."""

    large: bool | None = None
    ban: bool | None = None
    disband: bool | None = None
    send_ban: bool | None = None
    allow_stranger: bool | None = None
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True)
class Login:
    """A login that the call decides. `token` is empty unless the plugin was granted it."""

    device_id: str
    token: str = field(repr=False)
    peer_host: str


@dataclass(frozen=True, slots=True)
class UserQuery:
    """The kernel needs a user's record; `login` is set when the answer decides a login."""

    uid: str
    device_flag: int
    login: Login | None = None
    budget_ms: int = 0


@final
@dataclass(frozen=True, slots=True)
class UserAnswer:
    """Fields that are not None override the kernel's record for `ttl_ms` (0 = this once).

    `authenticated` decides a login without a token check.
    """

    token: str | None = field(default=None, repr=False)
    device_level: int | None = None
    ban: bool | None = None
    send_ban: bool | None = None
    authenticated: bool | None = None
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A webhook event that is about to leave; `data_json` is its body."""

    name: str
    data_json: bytes
    budget_ms: int = 0

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.data_json)


@final
@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What becomes of an event. Make it with `change`, `drop` or `delivered`."""

    action: str
    data_json: bytes = b""

    @classmethod
    def change(cls, data: Any) -> WebhookAnswer:
        """Send `data` (any JSON value) instead."""
        return cls("change", json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())

    @classmethod
    def drop(cls) -> WebhookAnswer:
        """Do not send it."""
        return cls("drop")

    @classmethod
    def delivered(cls) -> WebhookAnswer:
        """The plugin has delivered it itself."""
        return cls("delivered")


@dataclass(frozen=True, slots=True)
class Sent:
    """The fate of a message sent through the host. `reason_code` is 1 when it was accepted."""

    message_id: int
    message_seq: int
    reason_code: int
    reason: str
    client_msg_no: str

    @property
    def accepted(self) -> bool:
        return self.reason_code == 1


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Part of a channel's history, ascending message_seq; `more` when some of the range is left."""

    messages: Sequence[Message]
    more: bool


@dataclass(frozen=True, slots=True)
class Channel:
    exists: bool = False
    large: bool = False
    ban: bool = False
    disband: bool = False
    send_ban: bool = False
    allow_stranger: bool = False
    subscriber_count: int = 0
    last_message_seq: int = 0


@dataclass(frozen=True, slots=True)
class OnlineDevice:
    device_flag: int
    device_level: int = 0
    device_id: str = ""


@dataclass(frozen=True, slots=True)
class User:
    exists: bool = False
    online: tuple[OnlineDevice, ...] = ()
    system: bool = False


@dataclass(frozen=True, slots=True)
class KvEntry:
    """A stored value; `version` grows with every write of the key."""

    key: bytes
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class KvPage:
    """Entries in key order; `more` when the prefix has others after the last."""

    entries: Sequence[KvEntry]
    more: bool


Verdict = Continue | Replace | Refuse
Answer = Continue | Replace | Refuse | Veto | ChannelAnswer | UserAnswer | WebhookAnswer
CONTINUE: Final = Continue()
