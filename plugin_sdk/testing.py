"""Run a plugin in memory, without a server:

    async with PluginTest(Shout, config={"limit": 3}) as t:
        verdict = await t.send(payload=b"hello", from_uid="u1")

`SyncPluginTest` is the same for plain test functions, with `with` and without `await`. Calls pass
through the bytes of the wire and the very dispatcher that serves them in production. A handler that
raises makes the call raise HandlerFailedError. `t.host` is the FakeHost behind `self.host`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from plugin_sdk import convert
from plugin_sdk.dispatch import Dispatcher
from plugin_sdk.fake_host import FakeHost, SentMessage, make_message
from plugin_sdk.host import Host
from plugin_sdk.log import Log
from plugin_sdk.plugin import Plugin, bind_config, build
from plugin_sdk.secrets import Secrets
from plugin_sdk.types import (
    CONTINUE,
    ChannelAnswer,
    Continue,
    Login,
    Message,
    Refuse,
    UserAnswer,
    Verdict,
    WebhookAnswer,
)
from plugin_sdk.wire.v1 import plugin_pb2

__all__ = ["FakeHost", "HandlerFailedError", "PluginTest", "SentMessage", "SyncPluginTest"]

BUDGET_MS = 1000
_P = ParamSpec("_P")
_T = TypeVar("_T")


class HandlerFailedError(AssertionError):
    """The handler raised or answered something wrong; the text is what the host would log."""


class PluginTest:
    """A plugin, its dispatcher and a fake host. `plugin` is the instance, inside `async with`."""

    plugin: Plugin

    def __init__(
        self,
        plugin_class: type[Plugin],
        *,
        config: dict[str, Any] | None = None,
        host: FakeHost | None = None,
        data_dir: Path | None = None,
        max_payload_bytes: int = 0,
        secrets: dict[str, str] | None = None,
    ) -> None:
        self._secrets = Secrets(secrets)
        self.host = host or FakeHost()
        self._class = plugin_class
        self._config = json.dumps(config or {}).encode()
        self._config_number = 1
        self._next_config_number = 2
        self._data_dir = data_dir
        self._max_payload_bytes = max_payload_bytes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> PluginTest:
        try:
            await self._start()
        except BaseException:
            self._clean_up()
            raise
        return self

    async def _start(self) -> None:
        if self._data_dir is None:
            self._temporary = tempfile.TemporaryDirectory()
            self._data_dir = Path(self._temporary.name)
        loop = asyncio.get_running_loop()
        self.plugin = build(
            self._class,
            host=Host(self.host, loop),
            log=Log(),
            data_dir=self._data_dir,
            binding=bind_config(self._class, self._config, self._config_number),
            secrets=self._secrets,
        )
        self._dispatcher = Dispatcher(self.plugin, loop, max_payload_bytes=self._max_payload_bytes)
        await self._dispatcher.lifecycle("start")
        self._pump = loop.create_task(self._take_answers())

    def _clean_up(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pump.cancel()
        await asyncio.wait([self._pump])
        self._clean_up()

    # Hooks

    async def send(self, /, payload: bytes = b"", **fields: Any) -> Verdict:
        """Ask the `send` hook. `fields` are those of Message, and origin, conn_id, device_id,
        device_flag, lineage, attempt of the call."""
        return (await self.send_many([{"payload": payload, **fields}]))[0]

    async def send_many(self, messages: Sequence[dict[str, Any]]) -> list[Verdict]:
        """Ask the `send` hook about several messages in one batch."""

        def fill(batch: Any) -> list[int]:
            return [self._fill_send(batch, fields) for fields in messages]

        return await self._call(fill)

    async def persist_after(self, messages: Sequence[Message]) -> None:
        """Show stored messages (made by `message`)."""
        wires = [message._wire for message in messages]
        await self._one("persist_after", messages=wires)

    async def receive(
        self, /, payload: bytes = b"", *, uids: Sequence[str], lineage: bytes = b"", **fields: Any
    ) -> None:
        """Tell of a message whose recipients `uids` are offline or bound to the plugin."""
        wire = self.message(payload, **fields)._wire
        await self._one("receive", message=wire, uids=uids, lineage=lineage)

    async def channel_get(self, channel_id: str, channel_type: int) -> ChannelAnswer | Continue:
        answer: ChannelAnswer | Continue = await self._one(
            "channel_get", channel_id=channel_id, channel_type=channel_type
        )
        return answer

    async def user_get(
        self, uid: str, *, device_flag: int = 0, login: Login | None = None
    ) -> UserAnswer | Refuse | Continue:
        fields: dict[str, Any] = {"uid": uid, "device_flag": device_flag}
        if login is not None:
            fields["login"] = plugin_pb2.LoginAttempt(
                device_id=login.device_id, token=login.token, peer_host=login.peer_host
            )
        answer: UserAnswer | Refuse | Continue = await self._one("user_get", **fields)
        return answer

    async def webhook(self, event: str, data: Any) -> WebhookAnswer | Continue:
        data_json = json.dumps(data).encode()
        answer: WebhookAnswer | Continue = await self._one(
            "webhook", event=event, data_json=data_json
        )
        return answer

    async def config_update(self, config: dict[str, Any]) -> str | None:
        """Propose a configuration. None: accepted, and later calls see it; else the veto's text."""
        number = self._next_config_number
        self._next_config_number += 1
        answer = await self._one(
            "config_update", config_json=json.dumps(config).encode(), config_number=number
        )
        if isinstance(answer, Refuse):
            return answer.text
        self._config_number = number
        return None

    async def secrets_update(self, secrets: dict[str, str]) -> None:
        """Change the secrets as the operator does; returns when the plugin knows."""
        frame = plugin_pb2.Secrets()
        for name, value in secrets.items():
            frame.secrets.add(name=name, value=value)
        self._dispatcher.take_secrets(frame)
        await asyncio.sleep(0)

    async def health(self) -> str | None:
        """None when healthy, else the reason."""
        answer = await self._one("health")
        return answer.text if isinstance(answer, Refuse) else None

    async def stop(self, reason: str = "shutdown") -> None:
        await self._one("stop", reason=reason)

    def message(self, payload: bytes = b"", **fields: Any) -> Message:
        """Make a message; fields not given are those of a plain person chat."""
        return make_message(**_message_fields(self._take_id(), payload, fields))

    # The wire in memory

    def _take_id(self) -> int:
        number = self._next_id
        self._next_id += 1
        return number

    def _fill_send(self, batch: Any, fields: dict[str, Any]) -> int:
        own = {"attempt": 1, "origin": "client", "budget_ms": BUDGET_MS}
        names = plugin_pb2.SendCall.DESCRIPTOR.fields_by_name
        own.update({name: value for name, value in fields.items() if name in names})
        rest = {name: value for name, value in fields.items() if name not in names}
        payload = rest.pop("payload", b"")
        call_id = self._take_id()
        wire = make_message(**_message_fields(call_id, payload, rest))._wire
        batch.send.add(call_id=call_id, message=wire, **own)
        return call_id

    async def _one(self, hook: str, **fields: Any) -> Any:
        def fill(batch: Any) -> list[int]:
            call_id = self._take_id()
            getattr(batch, hook).add(call_id=call_id, budget_ms=BUDGET_MS, **fields)
            return [call_id]

        return (await self._call(fill))[0]

    async def _call(self, fill: Callable[[Any], list[int]]) -> list[Any]:
        frame = plugin_pb2.HostFrame()
        frame.calls.config_number = self._config_number
        ids = fill(frame.calls)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in ids]
        self._waiting.update(zip(ids, futures, strict=True))
        received = plugin_pb2.HostFrame.FromString(frame.SerializeToString())
        for _ in self._dispatcher.deliver(received.calls):
            await asyncio.sleep(0)
        answers = [await future for future in futures]
        for answer in answers:
            if isinstance(answer, str):
                raise HandlerFailedError(answer)
        return answers

    async def _take_answers(self) -> None:
        outbox = self._dispatcher.outbox
        ready = asyncio.Event()
        outbox.ready = ready.set
        while True:
            while (sent := outbox.take()) is not None:
                self._take_frame(plugin_pb2.PluginFrame.FromString(sent.SerializeToString()))
            if outbox.closed:
                return
            await ready.wait()
            ready.clear()

    def _take_frame(self, frame: plugin_pb2.PluginFrame) -> None:
        for call_id in frame.verdicts.continued:
            self._waiting.pop(call_id).set_result(CONTINUE)
        for wire in frame.verdicts.verdicts:
            self._waiting.pop(wire.call_id).set_result(convert.answer(wire))


def _message_fields(number: int, payload: bytes, fields: dict[str, Any]) -> dict[str, Any]:
    base = {
        "message_id": number,
        "channel_id": "u2@u1",
        "channel_type": 1,
        "from_uid": "u1",
        "client_msg_no": f"test-{number}",
        "red_dot": True,
    }
    return {**base, "payload": payload, **fields}


def _sync(
    method: Callable[Concatenate[PluginTest, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[SyncPluginTest, _P], _T]:
    def run(self: SyncPluginTest, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._runner.run(method(self._test, *args, **kwargs))

    run.__doc__ = method.__doc__
    return run


class SyncPluginTest:
    """PluginTest for plain functions: `with SyncPluginTest(Shout) as t: t.send(b"...")`. The
    plugin's loop runs only while a call of this class does."""

    def __init__(self, plugin_class: type[Plugin], **options: Any) -> None:
        self._test = PluginTest(plugin_class, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> SyncPluginTest:
        try:
            self._runner.run(self._test.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *exc_info: Any) -> None:
        try:
            self._runner.run(self._test.__aexit__(*exc_info))
        finally:
            self._runner.close()

    @property
    def host(self) -> FakeHost:
        return self._test.host

    @property
    def plugin(self) -> Any:
        return self._test.plugin

    def message(self, payload: bytes = b"", **fields: Any) -> Message:
        return self._test.message(payload, **fields)

    send = _sync(PluginTest.send)
    send_many = _sync(PluginTest.send_many)
    persist_after = _sync(PluginTest.persist_after)
    receive = _sync(PluginTest.receive)
    channel_get = _sync(PluginTest.channel_get)
    user_get = _sync(PluginTest.user_get)
    webhook = _sync(PluginTest.webhook)
    config_update = _sync(PluginTest.config_update)
    secrets_update = _sync(PluginTest.secrets_update)
    health = _sync(PluginTest.health)
    stop = _sync(PluginTest.stop)
