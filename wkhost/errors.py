"""The error tree and the wire's reason codes. Each error says whose fault it is."""

from __future__ import annotations

from enum import IntEnum


class ReasonCode(IntEnum):
    """Outcome of CONNECT, SEND and DISCONNECT as numbered on the wire; success is 1, not 0."""

    UNKNOWN = 0
    SUCCESS = 1
    AUTH_FAIL = 2
    SUBSCRIBER_NOT_EXIST = 3
    IN_BLACKLIST = 4
    CHANNEL_NOT_EXIST = 5
    USER_NOT_ON_NODE = 6
    SENDER_OFFLINE = 7
    MSG_KEY_ERROR = 8
    PAYLOAD_DECODE_ERROR = 9
    FORWARD_SEND_PACKET_ERROR = 10
    NOT_ALLOW_SEND = 11
    CONNECT_KICK = 12
    NOT_IN_WHITELIST = 13
    QUERY_TOKEN_ERROR = 14
    SYSTEM_ERROR = 15
    CHANNEL_ID_ERROR = 16
    NODE_MATCH_ERROR = 17
    NODE_NOT_MATCH = 18
    BAN = 19
    NOT_SUPPORT_HEADER = 20
    CLIENT_KEY_IS_EMPTY = 21
    RATE_LIMIT = 22
    NOT_SUPPORT_CHANNEL_TYPE = 23
    DISBAND = 24
    SEND_BAN = 25


class WkhostError(Exception):
    """Root of all errors that wkhost raises on purpose."""


class LocalProtocolError(WkhostError):
    """Our own code asked for bytes that the protocol cannot express."""


class RemoteProtocolError(WkhostError):
    """The peer sent bytes that the protocol forbids; its connection must be closed."""


class ConfigError(WkhostError):
    """A setting is unknown or has a wrong value; the text is one sentence that names it."""


class StoreError(WkhostError):
    """The store could not read or make durable what it was asked to."""


class StoreBusyError(StoreError):
    """The store cannot take writes now (stalled or reopening); the same write may be retried."""


class DataDirectoryError(StoreError):
    """The data directory is in use, damaged, or was written by a newer version."""


class PluginError(WkhostError):
    """A plugin, its package or its manifest is at fault."""


class Refused(WkhostError):  # noqa: N818 - an answer, not a fault
    """A request was understood and turned down.

    `reason_code` is what the client sees; `text` is for humans and may be empty.
    """

    def __init__(self, reason_code: int, text: str = "") -> None:
        super().__init__(reason_code, text)
        self.reason_code = reason_code
        self.text = text

    def __str__(self) -> str:
        return f"refused with reason {self.reason_code}" + (f": {self.text}" if self.text else "")
