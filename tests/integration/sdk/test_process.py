"""A real plugin process against a grpcio host: the whole life of the stream."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest

from plugin_sdk.serve import read_control
from plugin_sdk.wire.v1 import plugin_pb2
from tests.integration.sdk.kit import TOKEN, TestHost

SHOUT = """
    from plugin_sdk import Plugin, Message, Refuse, Replace, hook

    class Shout(Plugin):
        @hook
        def send(self, message: Message):
            if b"spam" in message.payload:
                return Refuse(11, "no spam")
            if message.payload.islower():
                return Replace(message.payload.upper())
            if message.payload == b"1":
                raise RuntimeError("cannot count")
"""


def stop(host: TestHost, call_id: int = 99) -> None:
    host.call(lambda batch: batch.stop.add(call_id=call_id, budget_ms=1000, reason="shutdown"))


def test_hello_carries_token_protocols_and_hooks_and_credit_follows(host: TestHost) -> None:
    host.start(SHOUT)
    credit = host.ready()
    assert host.hello.token == TOKEN
    assert (host.hello.protocol_min, host.hello.protocol_max) == (1, 1)
    assert list(host.hello.hooks) == ["send"]
    assert host.hello.sdk.startswith("python ")
    assert credit.bytes >= 1 << 20


def test_token_is_neither_in_argv_nor_in_environment(host: TestHost) -> None:
    host.start(SHOUT)
    host.ready()
    assert host.process is not None
    for name in ("cmdline", "environ"):
        with open(f"/proc/{host.process.pid}/{name}", "rb") as stream:
            text = stream.read()
        assert TOKEN.hex().encode() not in text
        assert TOKEN not in text


def test_unknown_protocol_ends_the_process_with_a_reason(
    make_host: Callable[..., TestHost],
) -> None:
    host = make_host(protocol=7)
    host.start(SHOUT)
    assert host.wait_exit() == 1
    host.wait_log("expected a Welcome with protocol 1 to 1, got 7")


def test_a_batch_is_answered_in_one_frame(host: TestHost) -> None:
    host.start(SHOUT)
    host.ready()
    host.send_calls(dict.fromkeys(range(1, 65), b"HELLO"))
    assert sorted(host.next_frame().verdicts.continued) == list(range(1, 65))


def test_the_first_answers_of_a_large_batch_leave_while_the_rest_is_decided(
    host: TestHost,
) -> None:
    host.start(SHOUT)
    host.ready()
    host.send_calls(dict.fromkeys(range(1, 601), b"HELLO"))
    assert list(host.next_frame().verdicts.continued) == list(range(1, 257))
    assert len(host.answers(344)) == 344


def test_every_verdict_arrives_as_written(host: TestHost) -> None:
    host.start(SHOUT)
    host.ready()
    host.send_calls({1: b"spam", 2: b"abc", 3: b"1"})
    found = host.verdicts(3)
    assert (found[1].refuse.code, found[1].refuse.text) == (11, "no spam")
    assert found[2].replace.payload == b"ABC"
    assert found[3].failed.detail == "RuntimeError: cannot count"
    host.wait_log("main.py")
    host.wait_log("cannot count")


def test_answers_over_the_frame_limits_are_cut(host: TestHost) -> None:
    host.start(SHOUT)
    host.ready()
    host.send_calls(dict.fromkeys(range(8), b"x" * 100000))
    left = set(range(8))
    while left:
        frame = host.next_frame()
        assert frame.ByteSize() <= 256 * 1024
        left -= {verdict.call_id for verdict in frame.verdicts.verdicts}


def test_blocking_handlers_answer_out_of_order_and_leave_the_loop_free(host: TestHost) -> None:
    host.start("""
        import threading
        from plugin_sdk import Plugin, hook

        GATE = threading.Event()

        class Slow(Plugin):
            @hook(blocking=True)
            def send(self, message):
                if message.payload == b"wait":
                    assert GATE.wait(10)
            @hook
            def health(self):
                GATE.set()
    """)
    host.ready()
    host.send_calls({1: b"wait", 2: b"go"})
    assert host.answers(1) == {2: "continue"}
    host.call(lambda batch: batch.health.add(call_id=3, budget_ms=1000))
    assert host.answers(2) == {1: "continue", 3: "continue"}


def test_async_handlers_that_suspend_do_not_hold_up_others(host: TestHost) -> None:
    host.start("""
        import asyncio
        from plugin_sdk import Plugin, hook

        class Waits(Plugin):
            @hook
            async def start(self):
                self.gate = asyncio.Event()
            @hook
            async def send(self, message):
                if message.payload == b"wait":
                    async with asyncio.timeout(10):
                        await self.gate.wait()
                elif message.payload == b"open":
                    self.gate.set()
    """)
    host.ready()
    host.send_calls({1: b"wait", 2: b"wait", 3: b"go"})
    assert host.answers(1) == {3: "continue"}
    host.send_calls({4: b"open"})
    assert host.answers(3) == {4: "continue", 1: "continue", 2: "continue"}


def test_lineage_of_the_call_travels_with_sends_of_every_kind_of_handler(host: TestHost) -> None:
    host.start("""
        import asyncio
        from plugin_sdk import Plugin, hook

        class Bot(Plugin):
            @hook
            async def send(self, message):
                await asyncio.sleep(0)
                sent = await self.host.send_message("u1", 1, b"async " + message.payload)
                assert sent.accepted and sent.message_id == 77
            @hook(blocking=True)
            def receive(self, message, uids):
                self.host.sync.send_message(uids[0], 1, b"blocking")
    """)
    host.ready()
    host.send_calls({1: b"a", 2: b"b"})

    def receive(batch: plugin_pb2.CallBatch) -> None:
        batch.receive.add(call_id=3, budget_ms=1000, uids=["u9"], lineage=b"of-receive")

    host.call(receive)
    assert host.answers(3) == {1: "continue", 2: "continue", 3: "continue"}
    lineages = {request.payload: request.lineage for request in host.sent}
    assert lineages == {
        b"async a": b"lineage-1",
        b"async b": b"lineage-2",
        b"blocking": b"of-receive",
    }


def test_host_api_status_becomes_a_python_exception(host: TestHost) -> None:
    host.start("""
        from plugin_sdk import NotPermittedError, Plugin, Refuse, hook

        class Bot(Plugin):
            @hook
            async def send(self, message):
                try:
                    await self.host.send_message("u1", 1, b"", from_uid="forbidden")
                except NotPermittedError as error:
                    return Refuse(20, str(error))
    """)
    host.ready()
    host.send_calls({1: b""})
    text = host.verdicts(1)[1].refuse.text
    assert text == "SendMessage: send.as: forbidden is not granted"


def test_stop_waits_for_calls_in_flight_then_cleans_up_and_exits_0(host: TestHost) -> None:
    host.start("""
        import time
        from plugin_sdk import Plugin, hook

        class Slow(Plugin):
            @hook(blocking=True)
            def send(self, message):
                time.sleep(0.2)
            @hook
            async def stop(self, reason):
                (self.data_dir / "stopped").write_text(reason)
    """)
    host.ready()
    host.send_calls({1: b""})
    stop(host)
    assert list(host.answers(2)) == [1, 99]
    host.outgoing.put(None)
    assert host.wait_exit() == 0
    assert (host.data_dir / "stopped").read_text() == "shutdown"


def test_process_ends_when_the_host_vanishes_even_with_a_stuck_handler(host: TestHost) -> None:
    host.start("""
        import time
        from plugin_sdk import Plugin, hook

        class Stuck(Plugin):
            @hook(blocking=True)
            def send(self, message):
                if message.payload:
                    time.sleep(3600)
    """)
    host.ready()
    host.send_calls({1: b"sleep", 2: b""})
    assert host.answers(1) == {2: "continue"}
    started = time.monotonic()
    host.vanish()
    assert host.wait_exit() == 3
    assert time.monotonic() - started < 3


def test_a_blocked_loop_is_reported_by_the_handlers_name(host: TestHost) -> None:
    host.start("""
        import time
        from plugin_sdk import Plugin, hook

        def helper():
            time.sleep(0.6)

        class Blocker(Plugin):
            @hook
            async def send(self, message):
                helper()
    """)
    host.ready()
    host.send_calls({1: b""})
    host.answers(1)
    host.wait_log("loop free again")
    lines = [json.loads(line) for line in host.log.splitlines()]
    blocked = next(line for line in lines if line["event"] == "loop blocked")
    assert blocked["handler"] == "Blocker.send"
    assert blocked["line"].endswith("main.py:11")
    assert blocked["at"].endswith("main.py:6")
    free = next(line for line in lines if line["event"] == "loop free again")
    assert 250 <= free["blocked_ms"] < 2000


def test_calls_keep_the_config_they_were_issued_under(make_host: Callable[..., TestHost]) -> None:
    host = make_host(config={"word": "old"})
    host.start("""
        import asyncio
        from dataclasses import dataclass
        from plugin_sdk import Plugin, Refuse, Veto, hook

        class Configured(Plugin):
            @dataclass
            class Config:
                word: str
            @hook
            async def start(self):
                self.gate = asyncio.Event()
            @hook
            def config_update(self, config):
                if config.word == "bad":
                    return Veto("not that word")
            @hook
            async def send(self, message):
                if message.payload == b"wait":
                    await self.gate.wait()
                self.gate.set()
                return Refuse(20, self.config.word)
    """)
    host.ready()

    def propose(call_id: int, config: dict[str, object], number: int) -> None:
        raw = json.dumps(config).encode()
        host.call(
            lambda batch: batch.config_update.add(
                call_id=call_id, budget_ms=1000, config_json=raw, config_number=number
            )
        )

    host.send_calls({1: b"wait"})
    propose(2, {"word": "bad"}, 2)
    assert host.verdicts(1)[2].refuse.text == "not that word"
    propose(3, {"word": 5}, 3)
    assert host.verdicts(1)[3].refuse.text == "config.word: expected a string, got 5"
    propose(4, {"word": "new"}, 4)
    assert host.answers(1) == {4: "continue"}
    host.send_calls({5: b"go"}, config_number=4)
    texts = {call_id: verdict.refuse.text for call_id, verdict in host.verdicts(2).items()}
    assert texts == {1: "old", 5: "new"}


def test_wrong_code_and_wrong_config_end_the_process_with_a_reason(host: TestHost) -> None:
    host.start("""
        from dataclasses import dataclass
        from plugin_sdk import Plugin, hook

        class Strict(Plugin):
            @dataclass
            class Config:
                word: str
    """)
    assert host.wait_exit() == 1
    host.wait_log("config.word: required, but not given")


def test_an_unfinished_control_line_is_an_error(host: TestHost) -> None:
    read, write = os.pipe()
    os.write(write, b'{"socket": "x"')
    os.close(write)
    with pytest.raises(ValueError, match="control line: expected one line of JSON"):
        read_control(read)
