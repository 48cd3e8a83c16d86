"""The host API in memory, for tests: records what a plugin sends, keeps its key-value store, and
answers look-ups from what the test has put in. It stands where the gRPC transport would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from plugin_sdk import convert
from plugin_sdk.errors import HostError, InvalidRequestError, VersionConflictError
from plugin_sdk.types import Channel, Message, Refuse, User
from plugin_sdk.wire.v1 import host_pb2, types_pb2

FIRST_MESSAGE_ID = 1001


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that the plugin sent, as the host got it."""

    channel_id: str
    channel_type: int
    payload: bytes
    from_uid: str
    client_msg_no: str
    no_persist: bool
    red_dot: bool
    sync_once: bool
    expire: int
    lineage: bytes


class FakeHost:
    """What a test may set: `messages` (see PluginTest.message), `channels` by (id, type), `users`
    by uid, `refuse_sends`, and `errors` by method name ("SendMessage", "KvGet", ...), raised
    instead of an answer. What it may look at: `sent`, and `kv` (key to (value, version))."""

    def __init__(self) -> None:
        self.sent: list[SentMessage] = []
        self.kv: dict[bytes, tuple[bytes, int]] = {}
        self.messages: list[Message] = []
        self.channels: dict[tuple[str, int], Channel] = {}
        self.users: dict[str, User] = {}
        self.refuse_sends: Refuse | None = None
        self.errors: dict[str, HostError] = {}
        self._kv_version = 0

    async def call(self, method: str, request: Any) -> Any:
        """Answer one call of HostApi."""
        if method in self.errors:
            raise self.errors[method]
        name = re.sub("([A-Z])", r"_\1", method).lower()
        return getattr(self, name)(request)

    def _send_message(self, request: host_pb2.SendMessageRequest) -> host_pb2.SendMessageResponse:
        fields = {name: getattr(request, name) for name in SentMessage.__dataclass_fields__}
        self.sent.append(SentMessage(**fields))
        number = FIRST_MESSAGE_ID + len(self.sent) - 1
        response = host_pb2.SendMessageResponse(message_id=number, reason_code=1)
        response.client_msg_no = request.client_msg_no or f"fake-{number}"
        if self.refuse_sends is not None:
            response.reason_code = self.refuse_sends.code
            response.reason = self.refuse_sends.text
        else:
            response.message_seq = len(self.sent)
        return response

    def _get_messages(self, request: host_pb2.GetMessagesRequest) -> host_pb2.GetMessagesResponse:
        wanted = set(request.message_ids)
        return host_pb2.GetMessagesResponse(messages=self._wires(wanted))

    def _wires(self, wanted: set[int]) -> list[types_pb2.Message]:
        return [m._wire for m in self.messages if m.message_id in wanted]

    def _list_messages(
        self, request: host_pb2.ListMessagesRequest
    ) -> host_pb2.ListMessagesResponse:
        last = request.last_seq or 2**32
        found = sorted(
            (
                message
                for message in self.messages
                if (message.channel_id, message.channel_type)
                == (request.channel_id, request.channel_type)
                and request.first_seq <= message.message_seq <= last
            ),
            key=lambda message: message.message_seq,
        )
        limit = request.limit or 100
        part = found[-limit:] if request.newest_first else found[:limit]
        return host_pb2.ListMessagesResponse(
            messages=[message._wire for message in part], more=len(found) > limit
        )

    def _get_channel(self, request: host_pb2.GetChannelRequest) -> host_pb2.GetChannelResponse:
        channel = self.channels.get((request.channel_id, request.channel_type), Channel())
        fields = {name: getattr(channel, name) for name in Channel.__dataclass_fields__}
        return host_pb2.GetChannelResponse(**fields)

    def _get_user(self, request: host_pb2.GetUserRequest) -> host_pb2.GetUserResponse:
        user = self.users.get(request.uid, User())
        response = host_pb2.GetUserResponse(exists=user.exists, system=user.system)
        for device in user.online:
            response.online.add(
                device_flag=device.device_flag,
                device_level=device.device_level,
                device_id=device.device_id,
            )
        return response

    def _kv_get(self, request: host_pb2.KvGetRequest) -> host_pb2.KvGetResponse:
        value, version = self.kv.get(_key(request.key), (b"", 0))
        return host_pb2.KvGetResponse(found=version > 0, value=value, version=version)

    def _kv_put(self, request: host_pb2.KvPutRequest) -> host_pb2.KvPutResponse:
        self._check_version(request)
        self._kv_version += 1
        self.kv[_key(request.key)] = (request.value, self._kv_version)
        return host_pb2.KvPutResponse(version=self._kv_version)

    def _kv_delete(self, request: host_pb2.KvDeleteRequest) -> host_pb2.KvDeleteResponse:
        self._check_version(request)
        gone = self.kv.pop(_key(request.key), None)
        return host_pb2.KvDeleteResponse(deleted=gone is not None)

    def _check_version(self, request: Any) -> None:
        if request.HasField("if_version"):
            version = self.kv.get(request.key, (b"", 0))[1]
            if version != request.if_version:
                raise VersionConflictError(
                    f"if_version: expected {version}, got {request.if_version}"
                )

    def _kv_scan(self, request: host_pb2.KvScanRequest) -> host_pb2.KvScanResponse:
        limit = request.limit or 100
        keys = sorted(
            key for key in self.kv if key.startswith(request.prefix) and key > request.after
        )
        response = host_pb2.KvScanResponse(more=len(keys) > limit)
        for key in keys[:limit]:
            value, version = self.kv[key]
            response.entries.add(key=key, value=value, version=version)
        return response


def _key(key: bytes) -> bytes:
    if not 1 <= len(key) <= 512:
        raise InvalidRequestError(f"key: expected 1 to 512 bytes, got {len(key)}")
    return key


def make_message(**fields: Any) -> Message:
    """A message with the given wire fields."""
    return convert.message(types_pb2.Message(**fields))
