"""Every hook through the harness, which is the dispatcher of production: answers, failures, the
host API in memory, and how handlers of every kind run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from plugin_sdk import (
    Channel,
    ChannelAnswer,
    ChannelQuery,
    Continue,
    Event,
    KvEntry,
    LimitExceededError,
    Login,
    Message,
    OnlineDevice,
    Origin,
    Plugin,
    Refuse,
    Replace,
    User,
    UserAnswer,
    UserQuery,
    Verdict,
    VersionConflictError,
    Veto,
    WebhookAnswer,
    hook,
)
from plugin_sdk.testing import HandlerFailedError, PluginTest, SyncPluginTest


class Everything(Plugin):
    """Answers every hook in its own way."""

    seen: list[Any]

    @hook
    def start(self) -> None:
        self.seen = []

    @hook
    def send(self, message: Message) -> Any:
        answers: dict[bytes, Any] = {
            b"go": None,
            b"continue": Continue(),
            b"replace": Replace(b"new"),
            b"refuse": Refuse(11, "no"),
            b"wrong": "yes",
            b"foreign": ChannelAnswer(ban=True),
            b"large": Replace(b"x" * 100),
        }
        if message.payload == b"raise":
            raise KeyError("oops")
        if message.payload == b"later":
            return self._later(message)
        self.seen.append(message.origin)
        return answers[message.payload]

    async def _later(self, message: Message) -> Verdict:
        await asyncio.sleep(0)
        await self.host.send_message("u1", 1, b"from the coroutine")
        return Refuse(12, message.from_uid)

    @hook
    async def persist_after(self, messages: Sequence[Message]) -> None:
        self.seen += [message.message_seq for message in messages]

    @hook
    def receive(self, message: Message, uids: Sequence[str]) -> None:
        self.seen.append((message.text, uids))

    @hook
    def channel_get(self, query: ChannelQuery) -> ChannelAnswer | None:
        if query.channel_id == "wrong":
            wrong: Any = "yes"
            return ChannelAnswer(ban=wrong)
        return ChannelAnswer(ban=False, ttl_ms=5) if query.channel_type == 2 else None

    @hook
    def user_get(self, query: UserQuery) -> UserAnswer | Refuse | None:
        if query.login is None:
            return Refuse(2) if query.uid == "bad" else UserAnswer(device_level=0)
        if query.login.token == "wrong":
            return Refuse(2, "wrong token")
        return UserAnswer(authenticated=True)

    @hook(blocking=True)
    def webhook(self, event: Event) -> WebhookAnswer | None:
        if event.name == "drop":
            return WebhookAnswer.drop()
        if event.name == "mine":
            return WebhookAnswer.delivered()
        return WebhookAnswer.change({"was": event.json()})

    @hook
    def config_update(self, config: Any) -> Veto | None:
        return Veto("not this") if config.get("bad") else None

    @hook
    def health(self) -> Veto | None:
        return Veto("tired") if len(self.seen) > 2 else None

    @hook
    def stop(self, reason: str) -> None:
        self.seen.append(reason)


def test_send_answers() -> None:
    with SyncPluginTest(Everything) as t:
        assert t.send(b"go", origin="http", conn_id=0) == Continue()
        assert t.plugin.seen == [Origin("http")]
        assert t.send(b"continue") == Continue()
        assert t.send(b"replace") == Replace(b"new")
        assert t.send(b"refuse") == Refuse(11, "no")


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (b"raise", "KeyError: 'oops'"),
        (b"wrong", "TypeError: send returned str: expected None, Continue, Replace, Refuse"),
        (b"foreign", "TypeError: send returned ChannelAnswer: expected None, Continue"),
        (b"large", "ValueError: Replace: payload: expected at most 50 bytes, got 100"),
    ],
)
def test_a_failing_handler_fails_its_own_call_only(payload: bytes, detail: str) -> None:
    with SyncPluginTest(Everything, max_payload_bytes=50) as t:
        with pytest.raises(HandlerFailedError, match=detail):
            t.send(payload)
        assert t.send(b"go") == Continue()


def test_a_sync_handler_may_return_a_coroutine_for_some_calls() -> None:
    with SyncPluginTest(Everything) as t:
        assert t.send(b"later", from_uid="u7", lineage=b"L") == Refuse(12, "u7")
        assert t.host.sent[0].lineage == b"L"


def test_lookups() -> None:
    with SyncPluginTest(Everything) as t:
        assert t.channel_get("g", 2) == ChannelAnswer(ban=False, ttl_ms=5)
        assert t.channel_get("p", 1) == Continue()
        with pytest.raises(HandlerFailedError, match="ChannelAnswer: ban"):
            t.channel_get("wrong", 2)
        assert t.user_get("u1") == UserAnswer(device_level=0)
        login = Login("d1", "wrong", "127.0.0.1")
        assert t.user_get("u1", login=login) == Refuse(2, "wrong token")
        assert t.user_get("u1", login=Login("d1", "t", "")) == UserAnswer(authenticated=True)
        with pytest.raises(HandlerFailedError, match="only a login can be refused"):
            t.user_get("bad")


def test_observers_webhooks_and_lifecycle() -> None:
    with SyncPluginTest(Everything) as t:
        t.persist_after([t.message(message_seq=1), t.message(message_seq=2)])
        assert t.health() is None
        t.receive(b'{"type":1,"content":"hi"}', uids=["u2", "u3"])
        assert t.health() == "tired"
        assert t.webhook("x", {"a": 1}) == WebhookAnswer.change({"was": {"a": 1}})
        assert t.webhook("drop", 1) == WebhookAnswer.drop()
        assert t.webhook("mine", 1) == WebhookAnswer.delivered()
        assert t.config_update({"bad": True}) == "not this"
        assert t.plugin.config == {}
        assert t.config_update({"good": 1}) is None
        t.send(b"go")
        assert t.plugin.config == {"good": 1}
        t.stop("disable")
        assert t.plugin.seen == [1, 2, ("hi", ("u2", "u3")), Origin("client"), "disable"]


class Batched(Plugin):
    """Answers a batch at once; the first payload says how."""

    @hook(batch=True)
    def send(self, messages: Sequence[Message]) -> Any:
        if messages[0].payload == b"short":
            return [None]
        if messages[0].payload == b"none":
            return None
        return [Refuse(11) if message.payload == b"bad" else None for message in messages]


def test_the_batch_form_gives_one_verdict_each_in_order() -> None:
    with SyncPluginTest(Batched) as t:
        payloads = [b"a", b"bad", b"c"]
        verdicts = t.send_many([{"payload": payload} for payload in payloads])
        assert verdicts == [Continue(), Refuse(11), Continue()]


@pytest.mark.parametrize(("first", "got"), [(b"short", "1"), (b"none", "NoneType")])
def test_a_batch_answer_of_another_length_fails_the_batch(first: bytes, got: str) -> None:
    with (
        SyncPluginTest(Batched) as t,
        pytest.raises(HandlerFailedError, match=f"expected a list of 2 verdicts, got {got}"),
    ):
        t.send_many([{"payload": first}, {"payload": b"x"}])


class Silent(Plugin):
    """Has no handler at all."""


def test_calls_without_a_handler_fail_but_lifecycle_goes_on() -> None:
    with SyncPluginTest(Silent) as t:
        with pytest.raises(HandlerFailedError, match="the plugin has no send handler"):
            t.send(b"x")
        assert t.health() is None
        assert t.config_update({"a": 1}) is None
        t.stop()


class Caller(Plugin):
    """Uses the host API in both ways: the payload is the name of the method to run."""

    @hook
    async def send(self, message: Message) -> None:
        await getattr(self, message.payload.decode())()

    @hook(blocking=True)
    def receive(self, message: Message, uids: Sequence[str]) -> None:
        host = self.host.sync
        assert threading.current_thread().name.startswith("blocking-")
        assert host.kv.put(b"k", b"v", if_version=0) == 1
        assert host.kv.get(b"k") == KvEntry(b"k", b"v", 1)
        assert host.kv.scan().entries == [KvEntry(b"k", b"v", 1)]
        assert host.kv.delete(b"k", if_version=1)
        assert host.get_user("u1").system is False
        assert host.get_channel("g", 2).ban
        assert host.get_messages([5]) == []
        assert not host.list_messages("g", 2).more
        assert host.send_message("g", 2, b"x").accepted

    async def kv(self) -> None:
        kv = self.host.kv
        for number in range(300):
            await kv.put(b"n%03d" % number, b"")
        assert [entry.key async for entry in kv.scan_all(b"n")] == [
            b"n%03d" % n for n in range(300)
        ]
        assert await kv.get(b"gone") is None
        with pytest.raises(VersionConflictError):
            await kv.put(b"n001", b"", if_version=0)
        assert not await kv.delete(b"gone")

    async def lookups(self) -> None:
        assert await self.host.get_user("u1") == User(True, (OnlineDevice(0, 1, "d"),), False)
        assert (await self.host.get_channel("g", 2)).subscriber_count == 3
        page = await self.host.list_messages("g", 2, first_seq=2, limit=1, newest_first=True)
        assert [message.message_seq for message in page.messages] == [3]
        assert page.more
        found = await self.host.get_messages([1, 9])
        assert [message.message_id for message in found] == [1]

    async def sync_in_loop(self) -> None:
        self.host.sync.get_user("u1")

    async def limited(self) -> None:
        await self.host.send_message("u1", 1, b"")


def make_caller() -> SyncPluginTest:
    t = SyncPluginTest(Caller)
    t.host.channels["g", 2] = Channel(exists=True, ban=True, subscriber_count=3)
    t.host.users["u1"] = User(True, (OnlineDevice(0, 1, "d"),), False)
    t.host.messages += [
        t.message(message_id=seq, message_seq=seq, channel_id="g", channel_type=2)
        for seq in (1, 2, 3)
    ]
    return t


def test_the_host_api_in_async_and_in_blocking_handlers() -> None:
    with make_caller() as t:
        t.send(b"kv")
        t.send(b"lookups")
        t.host.kv.clear()
        t.host._kv_version = 0
        t.receive(uids=["u1"])


def test_the_sync_host_refuses_to_block_the_loop() -> None:
    with make_caller() as t, pytest.raises(HandlerFailedError, match="would block the loop"):
        t.send(b"sync_in_loop")


def test_host_errors_reach_the_handler() -> None:
    with make_caller() as t:
        t.host.errors["SendMessage"] = LimitExceededError("send_rate: 10/s")
        with pytest.raises(HandlerFailedError, match="LimitExceededError: send_rate: 10/s"):
            t.send(b"limited")


class Mixed(Plugin):
    """Async: some calls suspend, each for another time; one cancels itself."""

    @hook
    async def send(self, message: Message) -> Verdict | None:
        steps = int(message.payload)
        if steps < 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        for _ in range(abs(steps)):
            await asyncio.sleep(0)
        return Refuse(11, message.payload.decode()) if steps % 2 else None


def test_async_calls_are_answered_each_with_its_own_verdict() -> None:
    steps = [0, 3, 1, 0, 0, 5, 2, 1] * 40
    with SyncPluginTest(Mixed) as t:
        verdicts = t.send_many([{"payload": b"%d" % number} for number in steps])
    expected = [Refuse(11, str(number)) if number % 2 else Continue() for number in steps]
    assert verdicts == expected


def test_a_cancelled_call_fails_alone() -> None:
    with SyncPluginTest(Mixed) as t:
        with pytest.raises(HandlerFailedError, match="CancelledError"):
            t.send_many([{"payload": b"-1"}, {"payload": b"0"}])
        assert t.send(b"1") == Refuse(11, "1")


def test_the_async_harness_is_the_same() -> None:
    async def run() -> Verdict:
        async with PluginTest(Everything) as t:
            return await t.send(payload=b"refuse")

    work: Coroutine[Any, Any, Verdict] = run()
    assert asyncio.run(work) == Refuse(11, "no")


class Broken(Plugin):
    @hook
    def start(self) -> None:
        raise RuntimeError("no model file")


def test_a_failing_start_fails_the_harness_too() -> None:
    with pytest.raises(RuntimeError, match="no model file"), SyncPluginTest(Broken):
        pass
