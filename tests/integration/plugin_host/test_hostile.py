"""Plugins that break the rules of the stream: each ends as a crash of that plugin alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.integration.plugin_host.kit import opened, running, until, write_plugin
from tests.integration.plugin_host.raw import write_raw
from wkhost.errors import PluginError
from wkhost.hooks.verdict import Continue, Failure, Outcome
from wkhost.plugin_host import session as session_module

WHEN_CALLED = {
    "an id that was never issued": ("verdicts([2**40])", "not outstanding"),
    "a duplicate in one batch": (
        "verdicts([ids[0], ids[0]])",
        "more verdicts than outstanding|not outstanding",
    ),
    "a duplicate later": ("verdicts(ids); verdicts(ids)", "more verdicts"),
    "an unknown outcome": (
        "verdicts(answers=[pb.Verdict(call_id=ids[0])])",
        "unknown outcome",
    ),
    "a second hello": ("hello()", "'hello' is not allowed here"),
    "an empty frame": ("out.put(pb.PluginFrame())", "'empty' is not allowed here"),
    "credit of zero": ("credit(0, 0)", "credit"),
    "credit beyond all bounds": ("credit(2**31, 2**40)", "credit"),
    "more verdicts than calls": ("verdicts(range(1, 100000))", "more verdicts"),
    "a frame over the limit": (
        "verdicts(answers=[pb.Verdict(call_id=1, replace=pb.Replace(payload=bytes(2**21)))])",
        "a message of 2097174 bytes exceeds",
    ),
    "a second stream": (
        "other = queue.Queue(); second = stub.Connect(frames(other)); other.put(pb.PluginFrame())",
        "second stream",
    ),
    "the end of the stream": ("out.put(None)", "closed its stream|exited"),
}


@pytest.mark.parametrize("case", WHEN_CALLED)
async def test_a_broken_rule_is_a_crash_and_hurts_no_other_plugin(
    case: str, tmp_path: Path
) -> None:
    body, reason = WHEN_CALLED[case]
    async with running(tmp_path) as it:
        bad = await it.install(write_raw(tmp_path / "bad", body))
        await it.install(write_plugin(tmp_path / "good", "good"))
        first, second = it.send(it.target("raw")), it.send(it.target("raw"))
        good = it.send(it.target("good"))
        answers = await it.recorder.wait(first, second, good)
        assert answers[2] == Continue()
        crashed = [a for a in answers[:2] if isinstance(a, Failure)]
        assert all(a.outcome is Outcome.CRASH for a in crashed)
        assert crashed or case == "a duplicate later"
        assert all(len(found) == 1 for found in it.recorder.found.values())
        await until(lambda: it.host.info("raw").generation > 1)
        assert it.host.info("raw").pid != bad.pid
        assert it.host.info("good").restarts == 0
        log = " ".join(it.logs("raw"))
        assert any(part in log for part in reason.split("|")), log


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ("refuse=pb.Refuse(code=0)", "refuse.code"),
        ("refuse=pb.Refuse(code=1)", "refuse.code"),
        ("refuse=pb.Refuse(code=256)", "refuse.code"),
        ("refuse=pb.Refuse(code=2, text='x' * 257)", "refuse.text"),
        ("refuse=pb.Refuse(code=2, text='a' + chr(27))", "refuse.text"),
        ("channel=pb.ChannelAnswer(ban=False)", "does not answer"),
        ("user=pb.UserAnswer(authenticated=True)", "does not answer"),
        ("webhook=pb.WebhookAnswer(action=2)", "does not answer"),
        ("failed=pb.Failed(detail='boom')", "boom"),
    ],
)
async def test_a_wrong_answer_crashes_its_own_call_only(
    verdict: str, reason: str, tmp_path: Path
) -> None:
    body = (
        "for i in ids:\n"
        f"    verdicts(answers=[pb.Verdict(call_id=i, {verdict})]) if i == 1 else verdicts([i])"
    )
    async with running(tmp_path) as it:
        status = await it.install(write_raw(tmp_path / "src", body))
        wrong, right = it.send(it.target("raw")), it.send(it.target("raw"))
        first, second = await it.recorder.wait(wrong, right)
        assert isinstance(first, Failure)
        assert first.outcome is Outcome.CRASH
        assert reason in first.detail
        assert second == Continue()
        assert it.host.info("raw").pid == status.pid


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("hello(token=bytes(32))", "wrong token"),
        ("hello(token=b'')", "wrong token"),
        ("hello(protocol_min=2, protocol_max=9)", "protocol: expected a range with 1"),
        ("hello(hooks=['send', 'webhook'])", "not in the manifest: webhook"),
        ("credit()", "'credit' is not allowed here"),
        ("verdicts([1])", "'verdicts' is not allowed here"),
        ("out.put(None)", "closed its stream|exited with status"),
    ],
)
async def test_a_wrong_handshake_does_not_start(body: str, reason: str, tmp_path: Path) -> None:
    code = f"stream = stub.Connect(frames(out))\n{body}\nfor frame in stream: pass\n"
    async with running(tmp_path) as it:
        with pytest.raises(PluginError, match=reason):
            await it.install(write_raw(tmp_path / "src", code, serve=False))
        assert it.chain.send == ()


async def test_a_plugin_that_never_shakes_hands_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wkhost.plugin_host.generation.START_TIMEOUT_S", 0.5)
    async with running(tmp_path) as it:
        with pytest.raises(PluginError, match="no handshake"):
            await it.install(write_raw(tmp_path / "src", "time.sleep(60)", serve=False))


async def test_credit_bounds_what_is_outstanding_and_the_rest_waits(tmp_path: Path) -> None:
    body = """
print('HAVE', len(ids), flush=True)
if not getattr(sys, 'shrunk', False):
    sys.shrunk = True
    credit(2, 1 << 20)
threading.Timer(0.02, verdicts, [ids]).start()
"""
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "src", body))
        target = it.target("raw")
        first = it.send(target)
        assert await it.recorder.wait(first) == [Continue()]
        ids = [it.send(target) for _ in range(9)]
        assert set(await it.recorder.wait(*ids)) == {Continue()}
        await until(lambda: len([1 for line in it.logs("raw") if "HAVE" in line]) >= 6)
        counts = [int(line.split()[-1]) for line in it.logs("raw") if "HAVE" in line]
        assert max(counts) <= 2


async def test_what_waits_is_bounded_and_then_overload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_WAITING_CALLS", 10)
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "src", "credit(1, 1000)"))
        target = it.target("raw")
        await until(opened(target, [it.send(target)]))
        await trio.testing.wait_all_tasks_blocked(0.03)
        for _ in range(10):
            it.send(target)
        with pytest.raises(AssertionError):
            it.send(target)


async def test_a_call_larger_than_the_credit_is_overload_not_a_jam(tmp_path: Path) -> None:
    body = "credit(10, 2000); verdicts(ids)"
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "src", body))
        target = it.target("raw")
        assert await it.recorder.wait(it.send(target)) == [Continue()]
        large, small = it.send(target, bytes(5000)), it.send(target)
        first, second = await it.recorder.wait(large, small)
        assert isinstance(first, Failure)
        assert first.outcome is Outcome.OVERLOAD
        assert second == Continue()


async def test_large_payloads_are_split_into_bounded_batches(tmp_path: Path) -> None:
    body = "print('SIZE', frame.ByteSize(), len(ids), flush=True); verdicts(ids)"
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "src", body))
        target = it.target("raw")
        ids = [it.send(target, bytes(100_000)) for _ in range(20)]
        ids.append(it.send(target, bytes(400_000)))
        ids += [it.send(target) for _ in range(3000)]
        assert set(await it.recorder.wait(*ids)) == {Continue()}
        rows = [line.split("SIZE")[1].split() for line in it.logs("raw") if "SIZE" in line]
        for size, count in rows:
            assert int(count) <= 1024
            assert int(size) <= 256 * 1024 + 100 or int(count) == 1


async def test_a_plugin_that_stops_reading_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wkhost.plugin_host.generation.STOP_BUDGET_S", 0.2)
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "bad", "time.sleep(1000)"))
        await it.install(write_plugin(tmp_path / "good", "good"))
        bad, good = it.target("raw"), it.target("good")
        for _ in range(100):
            it.send(bad, bytes(100_000))
        for _ in range(20):
            assert await it.recorder.wait(it.send(good), within_s=2) == [Continue()]
        status = it.host.info("raw")
        assert status.state == "running"
