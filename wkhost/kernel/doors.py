"""Where messages come in: a client's SEND, a request of the business API, a plugin's send.

Each door makes the message, with its id and canonical channel, and gives it to the one path that
all take. What can never be sent is refused here.
"""

from __future__ import annotations

from wkhost.addressing import canonical_id, command_id, subscribers_channel_id
from wkhost.clock import MessageIds
from wkhost.delivery.presence import Session
from wkhost.errors import ReasonCode, StoreBusyError
from wkhost.hooks.target import SendOrigin
from wkhost.kernel.channels import ChannelTable
from wkhost.kernel.inflight import Inflight, SentCallback, weight
from wkhost.kernel.replies import Replies
from wkhost.kernel.send import SendPath
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import SendMessage
from wkhost.protocol.packets import Send
from wkhost.types import (
    MAX_STRING_BYTES,
    ONLINE_CMD_CHANNEL_ID,
    SYSTEM_DEVICE_ID,
    SYSTEM_UID,
    ChannelType,
    DeviceFlag,
    Flags,
    Message,
    Setting,
)

MAX_CHANNEL_TYPE = 255
_NO_PERSIST = int(Flags.NO_PERSIST)
_SYNC_ONCE = int(Flags.SYNC_ONCE)
_PAIR_TYPES = (ChannelType.PERSON, ChannelType.AGENT)
_KEPT_SETTING = 0xFF & ~int(Setting.NO_ENCRYPT)
"""NO_ENCRYPT says how the SEND was encoded, nothing about the message."""
_SYSTEM_ERROR = int(ReasonCode.SYSTEM_ERROR)
_RATE_LIMIT = int(ReasonCode.RATE_LIMIT)
_UNDECODABLE = int(ReasonCode.PAYLOAD_DECODE_ERROR)
_NOT_DECODED = "the payload could not be decrypted"


class Doors:
    """Makes messages of what comes in and starts them on the path."""

    def __init__(
        self,
        *,
        settings: KernelSettings,
        channels: ChannelTable,
        ids: MessageIds,
        path: SendPath,
        replies: Replies,
    ) -> None:
        self._settings = settings
        self._channels = channels
        self._ids = ids
        self._path = path
        self._replies = replies

    def client(self, session: Session, send: Send) -> None:
        """Take a client's SEND; its SENDACK follows in this turn or a later one."""
        payload = send.payload
        flags = send.flags
        try:
            message_id = self._ids.next()
        except StoreBusyError:
            self._path.committer.raise_ceiling()
            self._replies.turn_down(session.conn_id, send, 0, _SYSTEM_ERROR, "")
            return
        if payload is None or len(payload) > self._settings.max_payload_bytes:
            text = "" if payload is None else "payload too large"
            where = (send.channel_id, send.channel_type)
            self._path.note_refusal(
                message_id, "client", session.uid, where, _UNDECODABLE, text or _NOT_DECODED
            )
            self._replies.turn_down(session.conn_id, send, message_id, _UNDECODABLE, text)
            return
        channel_type = send.channel_type
        message = Message(
            message_id,
            canonical_id(session.uid, send.channel_id, channel_type),
            channel_type,
            session.uid,
            send.client_msg_no,
            payload,
            flags,
            send.setting & _KEPT_SETTING,
            send.expire,
            send.topic,
        )
        channel = self._channels.get(message.channel_id, channel_type)
        m = Inflight(
            message,
            session.origin,
            self._path.dispatcher.chain,
            channel=channel,
            conn_id=session.conn_id,
            client_seq=send.client_seq,
        )
        size = weight(message)
        if session.inflight_bytes + size > self._settings.max_inflight_bytes_per_connection:
            self._path.turn_away(m, _RATE_LIMIT, "too much of this connection waits")
            return
        self._path.admit(m, size)

    def request(self, request: SendMessage, *, door: str, done: SentCallback, hop: int = 0) -> None:
        """Take a message from another door ("http" or a plugin's number).

        `done` is called in this turn or a later one. Commands (sync_once) go to the channel's
        command twin; with `subscribers` to a channel of their own.
        """
        from_uid = request.from_uid.strip() or SYSTEM_UID
        channel_id, channel_type = self._address(request, from_uid)
        problem = _problem_of(request, channel_id, self._settings.max_payload_bytes)
        try:
            message_id = self._ids.next()
        except StoreBusyError:
            self._path.committer.raise_ceiling()
            self._replies.reasons[_SYSTEM_ERROR] += 1
            done(0, 0, _SYSTEM_ERROR, "no message ids while the store is not available")
            return
        message = Message(
            message_id,
            channel_id,
            channel_type,
            from_uid,
            request.client_msg_no,
            request.payload,
            request.flags,
            request.setting & _KEPT_SETTING,
            request.expire,
            request.topic,
            hop=hop,
        )
        origin = _HTTP if door == _HTTP.door else _plugin_origin(door)
        channel = self._channels.get(channel_id, channel_type)
        m = Inflight(message, origin, self._path.dispatcher.chain, channel=channel, done=done)
        if request.subscribers:
            m.recipients = list(dict.fromkeys(request.subscribers))
        if problem is not None:
            self._path.turn_away(m, *problem)
        else:
            self._path.admit(m, weight(message))

    def _address(self, request: SendMessage, from_uid: str) -> tuple[str, int]:
        if request.subscribers:
            if request.flags & _NO_PERSIST:
                return ONLINE_CMD_CHANNEL_ID, ChannelType.TEMP
            return subscribers_channel_id(request.subscribers), ChannelType.TEMP
        channel_id = canonical_id(from_uid, request.channel_id, request.channel_type)
        if request.flags & _SYNC_ONCE:
            channel_id = command_id(channel_id, request.channel_type)
        return channel_id, request.channel_type


_HTTP = SendOrigin("http", device_id=SYSTEM_DEVICE_ID, device_flag=DeviceFlag.SYSTEM)


def _plugin_origin(no: str) -> SendOrigin:
    return SendOrigin(no, device_id=SYSTEM_DEVICE_ID, device_flag=DeviceFlag.SYSTEM)


def _problem_of(
    request: SendMessage, channel_id: str, max_payload_bytes: int
) -> tuple[int, str] | None:
    """Return why a request can never be sent, as (reason, text), or None."""
    if len(request.payload) > max_payload_bytes:
        return _UNDECODABLE, f"payload: at most {max_payload_bytes} bytes"
    if not 0 <= request.channel_type <= MAX_CHANNEL_TYPE:
        return ReasonCode.NOT_SUPPORT_CHANNEL_TYPE, f"channel_type: 0 to {MAX_CHANNEL_TYPE}"
    if "@" in request.from_uid and request.channel_type in _PAIR_TYPES:
        return ReasonCode.CHANNEL_ID_ERROR, "from_uid: holds @, which parts the uids of a chat"
    for name, text in (
        ("from_uid", request.from_uid),
        ("channel_id", channel_id),
        ("client_msg_no", request.client_msg_no),
        ("topic", request.topic),
    ):
        if len(text.encode("utf-8", "surrogatepass")) > MAX_STRING_BYTES:
            return ReasonCode.CHANNEL_ID_ERROR, f"{name}: at most {MAX_STRING_BYTES} bytes"
    return None
