"""The host's API as a plugin sees it: `await self.host.send_message(...)`, and the same without
await as `self.host.sync` in blocking handlers. How a call travels is the transport's business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from plugin_sdk import convert
from plugin_sdk.context import current_lineage
from plugin_sdk.types import Channel, KvEntry, KvPage, Message, MessagePage, Sent, User

_T = TypeVar("_T")
MAX_CONCURRENT_CALLS = 64
"""As many as the host takes at once from one plugin; further ones wait here."""


class Transport(Protocol):
    """Carries one unary call of the service HostApi. Raises HostError."""

    async def call(self, method: str, request: Any) -> Any: ...


class Host:
    """What a plugin may ask of the host. Every method may raise a HostError:
    NotPermittedError without the grant, and the others of plugin_sdk.errors."""

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        limit = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

        async def call(method: str, request: Any) -> Any:
            async with limit:
                return await transport.call(method, request)

        self._call = call
        self.kv = Kv(call)
        self.sync = SyncHost(self, loop)

    async def send_message(
        self,
        channel_id: str,
        channel_type: int,
        payload: bytes,
        *,
        from_uid: str = "",
        client_msg_no: str = "",
        no_persist: bool = False,
        red_dot: bool = True,
        sync_once: bool = False,
        expire: int = 0,
        cause: Message | None = None,
    ) -> Sent:
        """Send through the whole path, hooks included; returns when the fate is known.

        `channel_id` of a person chat is the receiver's uid. A repeat with the same
        `client_msg_no` gives the first message's ids. A refusal is no exception: see
        `Sent.accepted`. The send is tied to the call that is being handled; `cause` names a message
        instead, as handlers of batches (`persist_after` too) must. A send that is tied to nothing
        counts against the plugin's send rate.
        """
        lineage = cause.lineage if cause is not None else current_lineage()
        request = convert.send_request(
            channel_id=channel_id,
            channel_type=channel_type,
            payload=payload,
            from_uid=from_uid,
            client_msg_no=client_msg_no,
            no_persist=no_persist,
            red_dot=red_dot,
            sync_once=sync_once,
            expire=expire,
            lineage=lineage,
        )
        return convert.sent(await self._call("SendMessage", request))

    async def get_messages(self, message_ids: Iterable[int]) -> list[Message]:
        """Look up at most 256 messages; unknown ids are left out."""
        wire = await self._call("GetMessages", convert.messages_request(message_ids))
        return convert.messages(wire)

    async def list_messages(
        self,
        channel_id: str,
        channel_type: int,
        *,
        first_seq: int = 1,
        last_seq: int = 0,
        limit: int = 100,
        newest_first: bool = False,
    ) -> MessagePage:
        """Read a range of a channel's history (stored id), both ends included, ascending.

        `last_seq` 0 is the newest; `limit` at most 256; `newest_first` takes the newest of the
        range instead of the oldest.
        """
        request = convert.list_request(
            channel_id, channel_type, first_seq, last_seq, limit, newest_first
        )
        return convert.message_page(await self._call("ListMessages", request))

    async def get_channel(self, channel_id: str, channel_type: int) -> Channel:
        """Look a channel up; `exists` is False for an unknown one."""
        request = convert.channel_request(channel_id, channel_type)
        return convert.channel(await self._call("GetChannel", request))

    async def get_user(self, uid: str) -> User:
        """Look a user and their online devices up."""
        return convert.user(await self._call("GetUser", convert.user_request(uid)))


class Kv:
    """The plugin's own durable key-value store. Keys 1 to 512 bytes, values at most 1 MiB."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def get(self, key: bytes) -> KvEntry | None:
        wire = await self._call("KvGet", convert.kv_get_request(key))
        return convert.kv_entry(key, wire)

    async def put(
        self, key: bytes, value: bytes, *, ttl_ms: int = 0, if_version: int | None = None
    ) -> int:
        """Write; returns the key's new version. `if_version` writes only over that version
        (0 = only when absent), else VersionConflictError. `ttl_ms` 0 = kept for ever."""
        request = convert.kv_put_request(key, value, ttl_ms, if_version)
        version: int = (await self._call("KvPut", request)).version
        return version

    async def delete(self, key: bytes, *, if_version: int | None = None) -> bool:
        """Delete; True when there was something."""
        request = convert.kv_delete_request(key, if_version)
        deleted: bool = (await self._call("KvDelete", request)).deleted
        return deleted

    async def scan(self, prefix: bytes = b"", *, after: bytes = b"", limit: int = 100) -> KvPage:
        """Up to 256 entries in key order, after the key `after`."""
        request = convert.kv_scan_request(prefix, after, limit)
        return convert.kv_page(await self._call("KvScan", request))

    async def scan_all(self, prefix: bytes = b"") -> AsyncIterator[KvEntry]:
        """Every entry under a prefix, page by page."""
        after = b""
        while True:
            page = await self.scan(prefix, after=after, limit=256)
            for entry in page.entries:
                yield entry
            if not page.more:
                return
            after = page.entries[-1].key


class _Waiting:
    """Runs coroutines of the loop from another thread and waits for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None:
            work.close()
            raise RuntimeError(
                "host.sync would block the loop: use it in @hook(blocking=True) handlers, "
                "and `await self.host` in async ones"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class SyncHost:
    """`Host` for blocking handlers: the same methods, waiting instead of awaited."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._wait = _Waiting(loop).wait
        self.kv = SyncKv(host.kv, self._wait)

    def send_message(
        self,
        channel_id: str,
        channel_type: int,
        payload: bytes,
        *,
        from_uid: str = "",
        client_msg_no: str = "",
        no_persist: bool = False,
        red_dot: bool = True,
        sync_once: bool = False,
        expire: int = 0,
        cause: Message | None = None,
    ) -> Sent:
        work = partial(self._host.send_message, channel_id, channel_type, payload)
        return self._wait(
            work(
                from_uid=from_uid,
                client_msg_no=client_msg_no,
                no_persist=no_persist,
                red_dot=red_dot,
                sync_once=sync_once,
                expire=expire,
                cause=cause,
            )
        )

    def get_messages(self, message_ids: Iterable[int]) -> list[Message]:
        return self._wait(self._host.get_messages(message_ids))

    def list_messages(
        self,
        channel_id: str,
        channel_type: int,
        *,
        first_seq: int = 1,
        last_seq: int = 0,
        limit: int = 100,
        newest_first: bool = False,
    ) -> MessagePage:
        return self._wait(
            self._host.list_messages(
                channel_id,
                channel_type,
                first_seq=first_seq,
                last_seq=last_seq,
                limit=limit,
                newest_first=newest_first,
            )
        )

    def get_channel(self, channel_id: str, channel_type: int) -> Channel:
        return self._wait(self._host.get_channel(channel_id, channel_type))

    def get_user(self, uid: str) -> User:
        return self._wait(self._host.get_user(uid))


class SyncKv:
    """`Kv` for blocking handlers."""

    def __init__(self, kv: Kv, wait: Any) -> None:
        self._kv = kv
        self._wait = wait

    def get(self, key: bytes) -> KvEntry | None:
        entry: KvEntry | None = self._wait(self._kv.get(key))
        return entry

    def put(
        self, key: bytes, value: bytes, *, ttl_ms: int = 0, if_version: int | None = None
    ) -> int:
        version: int = self._wait(self._kv.put(key, value, ttl_ms=ttl_ms, if_version=if_version))
        return version

    def delete(self, key: bytes, *, if_version: int | None = None) -> bool:
        deleted: bool = self._wait(self._kv.delete(key, if_version=if_version))
        return deleted

    def scan(self, prefix: bytes = b"", *, after: bytes = b"", limit: int = 100) -> KvPage:
        page: KvPage = self._wait(self._kv.scan(prefix, after=after, limit=limit))
        return page
