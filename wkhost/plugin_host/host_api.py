"""What a plugin may ask of the host: each call checked against what it was granted, then answered.

Everything is denied unless the manifest's capabilities grant it. A refused field is named in
INVALID_ARGUMENT, a missing grant in PERMISSION_DENIED.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec
import trio
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as WireMessage

from plugin_sdk.wire.v1 import host_pb2
from wkhost.errors import ReasonCode, Refused, StoreError
from wkhost.link.contract import SendMessage, Sent
from wkhost.plugin_host import codec
from wkhost.plugin_host.grants import Grants
from wkhost.plugin_host.grpc import CallInfo, GrpcError, StatusCode, UnaryMethod
from wkhost.plugin_host.kv import MAX_VALUE_BYTES, KeyValues
from wkhost.plugin_host.lineage import MAX_HOP, Lineage
from wkhost.plugin_host.manifest import Capabilities
from wkhost.plugin_host.session import Session
from wkhost.store.keys import MemberKind
from wkhost.store.store import Store
from wkhost.types import MAX_STRING_BYTES, Flags, Message

SERVICE = "/wkhost.plugin.v1.HostApi/"
MAX_IDS = 256
MAX_LIST = 256
MAX_ANSWER_BYTES = 2 * 1024 * 1024
_SMALL_BYTES = 64 * 1024
_U32 = 2**32 - 1

R = TypeVar("R", bound=WireMessage)


class OnlineDevice(msgspec.Struct, frozen=True):
    device_flag: int
    device_level: int
    device_id: str


class HostServices(Protocol):
    """What the host API needs of the kernel."""

    async def send_message(self, request: SendMessage, door: str, hop: int) -> Sent:
        """Send through the whole path. `door` is the plugin's number, `hop` what the message
        carries. Raises Refused, StoreError."""

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        """Return the devices of `uid` that are connected now."""

    async def recipients(self, message: Message) -> list[str]:
        """Return the uids a stored message goes to, its sender left out. Raises StoreError."""

    async def offline_recipients(self, message: Message) -> list[str]:
        """Return those of `recipients` that are not connected now. Raises StoreError."""


class HostApi:
    """The methods of `HostApi`, for any number of generations."""

    def __init__(
        self,
        store: Store,
        services: HostServices,
        lineage: Lineage,
        denied: Callable[[str, str, str], None],
    ) -> None:
        """`denied(no, action, what)` is told of every call that lacks a grant."""
        self._store = store
        self._denied = denied
        self._services = services
        self._lineage = lineage
        self._values: dict[tuple[str, int], KeyValues] = {}
        self._rates: dict[str, SendRate] = {}

    def values(self, no: str, space: int) -> KeyValues:
        """Return one space of a plugin's key-value store."""
        found = self._values.get((no, space))
        if found is None:
            found = self._values[no, space] = KeyValues(no, self._store, space)
        return found

    async def drop_values(self, no: str, space: int) -> None:
        """Remove all values of a space."""
        await self.values(no, space).clear()
        del self._values[no, space]

    def forget(self, no: str) -> None:
        """Drop what is kept in memory of an uninstalled plugin."""
        self._values = {key: each for key, each in self._values.items() if key[0] != no}
        self._rates.pop(no, None)

    def methods(self, session: Session) -> dict[str, UnaryMethod]:
        """Return the methods that one generation may call."""
        calls = _Calls(self, session)
        payload = session.identity.max_payload_bytes + _SMALL_BYTES
        value = MAX_VALUE_BYTES + _SMALL_BYTES
        at_once: list[tuple[str, type[Any], Callable[[Any], WireMessage]]] = [
            ("GetMessages", host_pb2.GetMessagesRequest, calls.get_messages),
            ("ListMessages", host_pb2.ListMessagesRequest, calls.list_messages),
            ("GetUser", host_pb2.GetUserRequest, calls.get_user),
            ("KvGet", host_pb2.KvGetRequest, calls.kv_get),
            ("KvScan", host_pb2.KvScanRequest, calls.kv_scan),
        ]
        awaited: list[tuple[str, type[Any], Callable[[Any], Awaitable[WireMessage]], int]] = [
            ("SendMessage", host_pb2.SendMessageRequest, calls.send_message, payload),
            ("GetChannel", host_pb2.GetChannelRequest, calls.get_channel, _SMALL_BYTES),
            ("KvPut", host_pb2.KvPutRequest, calls.kv_put, value),
            ("KvDelete", host_pb2.KvDeleteRequest, calls.kv_delete, _SMALL_BYTES),
        ]
        methods = {
            SERVICE + name: UnaryMethod(self._serve(session, request, method), _SMALL_BYTES)
            for name, request, method in at_once
        }
        for name, request, method, limit in awaited:
            serve = self._serve_awaited(session, request, method)
            methods[SERVICE + name] = UnaryMethod(serve, limit)
        return methods

    def _serve(
        self, session: Session, request_type: type[Any], method: Callable[[Any], WireMessage]
    ) -> Callable[[bytes, CallInfo], bytes]:
        def serve(data: bytes, call: CallInfo) -> bytes:
            request = _read_request(session, request_type, data)
            with self._told(session):
                return method(request).SerializeToString()

        return serve

    def _serve_awaited(
        self,
        session: Session,
        request_type: type[Any],
        method: Callable[[Any], Awaitable[WireMessage]],
    ) -> Callable[[bytes, CallInfo], Awaitable[bytes]]:
        async def serve(data: bytes, call: CallInfo) -> bytes:
            request = _read_request(session, request_type, data)
            with self._told(session):
                return (await method(request)).SerializeToString()

        return serve

    @contextmanager
    def _told(self, session: Session) -> Iterator[None]:
        """Put the store's errors into the plugin's words, and tell of calls that lack a grant."""
        try:
            yield
        except StoreError as error:
            raise _unavailable(error) from error
        except GrpcError as error:
            if error.code == StatusCode.PERMISSION_DENIED:
                self._denied(session.no, "grant_denied", error.message)
            raise

    @property
    def store(self) -> Store:
        return self._store

    async def send(self, session: Session, request: SendMessage, lineage: bytes) -> Sent:
        """Send as the plugin: with lineage as a consequence, without as a root at its rate."""
        no = session.no
        hop = 1
        if lineage:
            cause = self._lineage.verify(no, lineage)
            if cause is None or (cause.call_id and not session.is_open(cause.call_id)):
                return _plugin_loop(request, "the lineage is not of an open call of this plugin")
            hop = cause.hop + 1
            if hop > MAX_HOP:
                return _plugin_loop(request, f"hop {hop} of plugins answering plugins")
        else:
            rate = session.identity.manifest.capabilities.send_rate
            bucket = self._rates.setdefault(no, SendRate())
            if not bucket.take(rate):
                raise GrpcError(
                    StatusCode.RESOURCE_EXHAUSTED, f"send_rate: {rate} sends per second granted"
                )
        try:
            return await self._services.send_message(request, no, hop)
        except Refused as refused:
            return Sent(0, 0, request.client_msg_no, refused.reason_code, refused.text)

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        return self._services.online_devices(uid)


class SendRate:
    """A token bucket over root sends; a burst is one second's worth."""

    def __init__(self) -> None:
        self._tokens: float | None = None
        self._at = 0.0

    def take(self, per_s: int) -> bool:
        now = trio.current_time()
        if self._tokens is None:
            self._tokens = float(per_s)
        self._tokens = min(float(per_s), self._tokens + (now - self._at) * per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Calls:
    """The methods for one generation."""

    def __init__(self, api: HostApi, session: Session) -> None:
        self._api = api
        self._session = session
        self._store = api.store
        self._compiled: tuple[Capabilities, Grants] | None = None
        self._values = api.values(session.no, session.identity.space)

    @property
    def _grants(self) -> Grants:
        """What holds for this call: grants change while the plugin runs."""
        capabilities = self._session.identity.manifest.capabilities
        if self._compiled is None or self._compiled[0] is not capabilities:
            self._compiled = capabilities, Grants(capabilities, self._store.is_system_uid)
        return self._compiled[1]

    def _need_in_charge(self) -> None:
        """Another generation has taken over: a write of this one would undo what that one did."""
        if self._session.superseded:
            raise GrpcError(
                StatusCode.FAILED_PRECONDITION, "superseded: a newer generation has taken over"
            )

    async def send_message(
        self, request: host_pb2.SendMessageRequest
    ) -> host_pb2.SendMessageResponse:
        _check_text("channel_id", request.channel_id)
        _check_text("from_uid", request.from_uid)
        _check_channel_type(request.channel_type)
        limit = self._session.identity.max_payload_bytes
        if not 1 <= len(request.payload) <= limit:
            raise _invalid("payload", f"1 to {limit} bytes", f"{len(request.payload)}")
        if len(request.client_msg_no.encode()) > MAX_STRING_BYTES:
            raise _invalid("client_msg_no", f"at most {MAX_STRING_BYTES} bytes", "more")
        self._grants.need_send_as(request.from_uid)
        flags = (
            Flags.NO_PERSIST * request.no_persist
            | Flags.RED_DOT * request.red_dot
            | Flags.SYNC_ONCE * request.sync_once
        )
        message = SendMessage(
            from_uid=request.from_uid,
            channel_id=request.channel_id,
            channel_type=request.channel_type,
            payload=request.payload,
            client_msg_no=request.client_msg_no or uuid.uuid4().hex,
            flags=int(flags),
            expire=request.expire,
        )
        sent = await self._api.send(self._session, message, request.lineage)
        return host_pb2.SendMessageResponse(
            message_id=sent.message_id,
            message_seq=sent.message_seq,
            reason_code=sent.reason_code,
            reason=sent.reason,
            client_msg_no=sent.client_msg_no,
        )

    def get_messages(self, request: host_pb2.GetMessagesRequest) -> host_pb2.GetMessagesResponse:
        if len(request.message_ids) > MAX_IDS:
            raise _invalid("message_ids", f"at most {MAX_IDS}", f"{len(request.message_ids)}")
        self._grants.need_any_read()
        answer = host_pb2.GetMessagesResponse()
        size = 0
        for message_id in request.message_ids:
            if message_id >= 2**63:
                continue
            message = self._store.message_by_id(message_id)
            if message is None or not self._grants.may_read(message):
                continue
            size += len(message.payload)
            if size > MAX_ANSWER_BYTES and len(answer.messages):
                raise GrpcError(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"message_ids: more than {MAX_ANSWER_BYTES} bytes of payload, ask for fewer",
                )
            codec.fill_message(answer.messages.add(), message, payload=True)
        return answer

    def list_messages(self, request: host_pb2.ListMessagesRequest) -> host_pb2.ListMessagesResponse:
        _check_text("channel_id", request.channel_id)
        _check_channel_type(request.channel_type)
        if request.limit > MAX_LIST:
            raise _invalid("limit", f"at most {MAX_LIST}", f"{request.limit}")
        last_seq = request.last_seq or _U32
        if request.first_seq > last_seq:
            raise _invalid("first_seq", f"at most last_seq ({last_seq})", f"{request.first_seq}")
        self._grants.need_read(request.channel_id, request.channel_type)
        limit = request.limit or 100
        # One more than asked for tells whether more is left, unless the store's page is full.
        found = self._store.read_messages(
            request.channel_id,
            request.channel_type,
            request.first_seq,
            last_seq,
            min(limit + 1, MAX_LIST),
            request.newest_first,
        )
        kept, more = _fit(found, limit, newest_first=request.newest_first)
        if not more and len(found) == MAX_LIST:
            edge = kept[0].message_seq - 1 if request.newest_first else kept[-1].message_seq + 1
            more = request.first_seq <= edge <= last_seq and edge > 0
        answer = host_pb2.ListMessagesResponse(more=more)
        for message in kept:
            codec.fill_message(answer.messages.add(), message, payload=True)
        return answer

    async def get_channel(self, request: host_pb2.GetChannelRequest) -> host_pb2.GetChannelResponse:
        _check_text("channel_id", request.channel_id)
        _check_channel_type(request.channel_type)
        self._grants.need("channels_read")
        store, channel = self._store, (request.channel_id, request.channel_type)
        info = store.channel_info(*channel)
        answer = host_pb2.GetChannelResponse(
            exists=info is not None,
            subscriber_count=await store.member_count(MemberKind.SUBSCRIBER, *channel),
            last_message_seq=store.last_seq(*channel),
        )
        if info is not None:
            answer.large = info.large
            answer.ban = info.ban
            answer.disband = info.disband
            answer.send_ban = info.send_ban
            answer.allow_stranger = info.allow_stranger
        return answer

    def get_user(self, request: host_pb2.GetUserRequest) -> host_pb2.GetUserResponse:
        _check_text("uid", request.uid)
        self._grants.need("users_read")
        answer = host_pb2.GetUserResponse(
            exists=self._store.user_exists(request.uid),
            system=self._store.is_system_uid(request.uid),
        )
        for device in self._api.online_devices(request.uid):
            answer.online.add(
                device_flag=device.device_flag,
                device_level=device.device_level,
                device_id=device.device_id,
            )
        return answer

    # --- key-value store ------------------------------------------------------------------------

    def kv_get(self, request: host_pb2.KvGetRequest) -> host_pb2.KvGetResponse:
        self._grants.need("kv_bytes")
        found = self._values.get(request.key)
        if found is None:
            return host_pb2.KvGetResponse()
        return host_pb2.KvGetResponse(found=True, value=found.value, version=found.version)

    async def kv_put(self, request: host_pb2.KvPutRequest) -> host_pb2.KvPutResponse:
        quota = self._grants.need("kv_bytes")
        version = await self._values.put(
            request.key,
            request.value,
            quota,
            request.ttl_ms,
            request.if_version if request.HasField("if_version") else None,
            check=self._need_in_charge,
        )
        return host_pb2.KvPutResponse(version=version)

    async def kv_delete(self, request: host_pb2.KvDeleteRequest) -> host_pb2.KvDeleteResponse:
        self._grants.need("kv_bytes")
        deleted = await self._values.delete(
            request.key,
            request.if_version if request.HasField("if_version") else None,
            check=self._need_in_charge,
        )
        return host_pb2.KvDeleteResponse(deleted=deleted)

    def kv_scan(self, request: host_pb2.KvScanRequest) -> host_pb2.KvScanResponse:
        self._grants.need("kv_bytes")
        entries, more = self._values.scan(request.prefix, request.after, request.limit)
        answer = host_pb2.KvScanResponse(more=more)
        for entry in entries:
            answer.entries.add(key=entry.key, value=entry.value, version=entry.version)
        return answer


def _read_request(session: Session, request_type: type[Any], data: bytes) -> Any:
    if not session.welcomed:
        raise GrpcError(StatusCode.FAILED_PRECONDITION, "expected Hooks.Connect first")
    if session.failure:
        raise GrpcError(StatusCode.UNAVAILABLE, "this generation is over")
    try:
        return request_type.FromString(data)
    except DecodeError as error:
        raise GrpcError(StatusCode.INVALID_ARGUMENT, "request: not decodable") from error


def _unavailable(error: StoreError) -> GrpcError:
    return GrpcError(StatusCode.UNAVAILABLE, f"the store cannot answer: {error}")


def _fit(found: list[Message], limit: int, *, newest_first: bool) -> tuple[list[Message], bool]:
    """Keep what one answer may hold, from the end that was asked for; say if something is left."""
    ordered = found[::-1] if newest_first else found
    size = count = 0
    for message in ordered[:limit]:
        size += len(message.payload)
        if count and size > MAX_ANSWER_BYTES:
            break
        count += 1
    kept = ordered[:count]
    return (kept[::-1] if newest_first else kept), count < len(found)


def _plugin_loop(request: SendMessage, why: str) -> Sent:
    reason = f"plugin_loop: {why}"
    return Sent(0, 0, request.client_msg_no, int(ReasonCode.NOT_ALLOW_SEND), reason)


def _check_text(field: str, value: str) -> None:
    if not 1 <= len(value.encode()) <= MAX_STRING_BYTES:
        raise _invalid(field, f"1 to {MAX_STRING_BYTES} bytes", f"{len(value.encode())}")


def _check_channel_type(value: int) -> None:
    if not 1 <= value <= 255:
        raise _invalid("channel_type", "1 to 255", f"{value}")


def _invalid(field: str, expected: str, got: str) -> GrpcError:
    return GrpcError(StatusCode.INVALID_ARGUMENT, f"{field}: expected {expected}, got {got}")
