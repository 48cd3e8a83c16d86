"""An operator sees what plugins do: metrics, top, why, try, and the breaker of a hung guard."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.plugins import wait_notes, write_plugin
from tests.kit.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

LIMIT_S = 90
HANG = b"hang"

GUARD = """
class Guard(Plugin):
    @hook
    async def send(self, message):
        if message.payload == b"hang":
            await asyncio.sleep(3600)
        if b"spam" in message.payload:
            return Refuse(20, "no spam, please")
"""
MASKER = """
class Masker(Plugin):
    @hook
    async def send(self, message):
        seen = await self.host.kv.get(b"seen")
        count = int(seen.value) if seen else 0
        await self.host.kv.put(b"seen", b"%d" % (count + 1))
        if b"secret" not in message.payload:
            return None
        await self.host.send_message("keeper", 1, b'{"n":%d}' % count, from_uid="masker-bot")
        note(self, count=count)
        return Replace(message.payload.replace(b"secret", b"******"))
"""


def plugins(folder: Path) -> list[str]:
    guard = write_plugin(folder, "guard", GUARD, hooks={"send": {"payload": True}}, stage="guard")
    masker = write_plugin(
        folder,
        "masker",
        MASKER,
        hooks={"send": {"payload": True, "policy": "open"}},
        capabilities={"kv_bytes": 10_000, "send_as": ["masker-bot"]},
    )
    return [str(guard), str(masker)]


async def send(
    server: ServerProcess, payload: bytes, channel_id: str = "bob", channel_type: int = 1
) -> dict[str, Any]:
    answer = await server.post(
        "/message/send",
        from_uid="alice",
        channel_id=channel_id,
        channel_type=channel_type,
        payload=base64.b64encode(payload).decode(),
    )
    data: dict[str, Any] = answer["data"]
    return data


async def scrape(server: ServerProcess) -> dict[tuple[str, ...], float]:
    """Return the samples by name and sorted label values."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://{server.listening['manager']}/metrics")
        assert (await client.get(f"http://{server.listening['manager']}/other")).status_code == 404
    assert answer.status_code == httpx.codes.OK
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_metrics_top_and_why_tell_what_happened_and_try_changes_nothing(
    tmp_path: Path,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server") as server:
            assert (await scrape(server))["wukongim_messages_sent_total",] == 0
            for source in plugins(tmp_path):
                await server.plugin("install", source)
            fine = [await send(server, b'{"type":1,"content":"hi"}') for _ in range(3)]
            spam = await send(server, b'{"type":1,"content":"spam"}')
            assert spam["reason_code"] == 20

            seen = await scrape(server)
            name, calls = "wukongim_plugin_calls_total", ("send", "continue", "guard", "1.0.0")
            assert seen[(name, *calls)] == 3
            assert seen[name, "send", "refuse", "guard", "1.0.0"] == 1
            assert seen[name, "send", "continue", "masker", "1.0.0"] == 3
            duration = "wukongim_plugin_call_duration_seconds_count"
            assert seen[duration, "send", "guard", "1.0.0"] == 4
            assert seen["wukongim_plugin_up", "guard"] == 1
            assert seen["wukongim_plugin_breaker_state", "send", "guard", "1.0.0"] == 0
            assert ("wukongim_plugin_sandbox_layer", "fs", "guard") in seen
            assert seen["wukongim_messages_sent_total",] == 3
            assert seen["wukongim_db_operations_total", "sync"] > 0
            assert seen["wukongim_commit_batch_messages_sum",] == 3

            (guard, masker) = await server.plugin("top", "--once", "--interval", "0.1")
            assert (guard["plugin"], guard["state"]) == ("guard", "running")
            assert masker["hooks"][0]["breaker"] == "closed"
            assert guard["rss_bytes"] > 0

            why = await server.plugin("why", str(spam["message_id"]))
            assert (why["fate"], why["reason_code"], why["door"]) == ("refused", 20, "http")
            (decision,) = why["decisions"]
            assert (decision["no"], decision["version"]) == ("guard", "1.0.0")
            assert (decision["outcome"], decision["text"]) == ("refuse", "no spam, please")
            assert 0 < decision["took_s"] < 1
            why = await server.plugin("why", str(fine[-1]["message_id"]))
            assert (why["fate"], why["message_seq"]) == ("stored", 3)
            assert [d["no"] for d in why["decisions"]] == ["guard", "masker"]
            assert (await server.plugin("why", "12"))["fate"] == "unknown"
            await _what_the_server_refuses_is_told_too(server)

            await _try_changes_nothing(server, running=True)
            assert server.trouble() == []
        await _try_changes_nothing(server, running=False)


async def _what_the_server_refuses_is_told_too(server: ServerProcess) -> None:
    await server.post("/channel", channel_id="closed", channel_type=2, ban=1)
    refused = await send(server, b"hi", channel_id="closed", channel_type=2)
    assert refused["reason_code"] == 19
    shown = server.cli("plugin", "why", str(refused["message_id"])).stdout
    assert "19 the channel is banned" in shown
    assert "the server refused it by its own rules" in shown


async def _try_changes_nothing(server: ServerProcess, *, running: bool) -> None:
    """The copies saw the values of the real ones, and the real ones saw nothing."""
    before = await scrape(server) if running else {}
    trial = await server.plugin("try", '{"type":1,"content":"a secret"}')
    assert [step["no"] for step in trial["steps"]] == ["guard", "masker"]
    assert [step["outcome"] for step in trial["steps"]] == ["continue", "replace"]
    assert trial["steps"][1]["before"] == '{"type":1,"content":"a secret"}'
    assert trial["payload"] == '{"type":1,"content":"a ******"}'
    assert trial["problems"] == []
    (would_send,) = trial["sends"]
    assert (would_send["no"], would_send["channel_id"]) == ("masker", "keeper")
    assert would_send["payload"] == '{"n":3}', "the copy works with the values of the real one"
    refused = await trio.to_thread.run_sync(
        lambda: server.cli("plugin", "try", "spam", check=False)
    )
    assert refused.returncode == 3
    assert "refused with 20: no spam, please" in refused.stdout
    assert "not reached" in refused.stdout
    if running:
        after = await scrape(server)
        for name in ("wukongim_messages_sent_total", "wukongim_commit_batch_messages_sum"):
            assert after[name,] == before[name,]
        calls = "wukongim_plugin_calls_total"
        counted = [key for key in after if key[0] == calls]
        assert all(after[key] == before[key] for key in counted)
    notes_path = server.root / "data" / "plugins" / "masker" / "data" / "notes.jsonl"
    assert not notes_path.exists(), "the copy has a data folder of its own"


async def test_the_breaker_of_a_hung_closed_guard_answers_at_once_and_closes_again(
    tmp_path: Path,
) -> None:
    settings = {"plugin.timeout": "200ms", "plugin.breakerPause": "300ms"}
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", settings) as server:
            await server.plugin("install", plugins(tmp_path)[0])
            reasons = [(await send(server, HANG))["reason_code"] for _ in range(5)]
            start = time.perf_counter()
            at_once = await send(server, HANG)
            took_s = time.perf_counter() - start
            assert [*reasons, at_once["reason_code"]] == [15] * 6
            assert took_s < 0.1, "nobody waits for a budget that is known to be missed"
            why = await server.plugin("why", str(at_once["message_id"]))
            (decision,) = why["decisions"]
            assert (decision["asked"], decision["outcome"]) == (False, "timeout")
            assert (decision["policy"], decision["text"]) == ("closed", "the breaker is open")
            seen = await scrape(server)
            assert seen["wukongim_plugin_breaker_opened_total", "send", "guard", "1.0.0"] >= 1
            assert seen["wukongim_plugin_short_circuits_total", "send", "guard", "1.0.0"] >= 1
            while "reason_code" in await send(server, b"fine"):
                pass  # each answer comes at once; the probe is one of them
            breakers = [
                record["state"]
                for line in server.log().splitlines()
                if (record := json.loads(line))["event"] == "plugin_breaker"
            ]
            assert breakers[0] == "open"
            assert breakers[-2:] == ["half_open", "closed"]


async def test_logs_follow_and_tell_of_dropped_lines(tmp_path: Path) -> None:
    code = """
class Loud(Plugin):
    @hook
    async def send(self, message):
        for n in range(20_000):
            print("line", n)
        note(self, done=True)
"""
    source = write_plugin(tmp_path, "loud", code, hooks={"send": {}})
    with trio.fail_after(LIMIT_S):
        async with running_server(tmp_path / "server", {"plugin.timeout": "20s"}) as server:
            await server.plugin("install", str(source))
            command = [*_wkhost(server), "plugin", "logs", "loud", "-f", "--json"]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            told = b""
            await send(server, b"go")
            await wait_notes(server, "loud", done=True)
            while b"came too fast: dropped" not in told:
                told += await process.stdout.receive_some(65536)
            process.terminate()
            await process.wait()
            seen = await scrape(server)
            assert seen["wukongim_plugin_log_lines_dropped_total", "loud"] > 0


def _wkhost(server: ServerProcess) -> list[str]:

    return [sys.executable, "-m", "wkhost", "--config", str(server.config)]
