"""The host API from a plugin's side: denied unless granted, every field checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.plugin_host.kit import Running, message, running, until
from tests.integration.plugin_host.raw import write_raw
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.store import mutations
from wkhost.store.keys import MemberKind
from wkhost.types import ChannelInfo

HEAD = """
def tell(name, call):
    try:
        print(name, "OK", repr(call()).replace(chr(10), " "), flush=True)
    except grpc.RpcError as error:
        print(name, error.code().name, error.details(), flush=True)

"""
SEND = "host_pb2.SendMessageRequest(channel_id='u2', channel_type=1, from_uid={uid!r}, payload=b'p'"


async def results(it: Running, tmp_path: Path, calls: dict[str, str], extra: str) -> dict[str, str]:
    """Run `calls` in a plugin on its first send call; return what each printed."""
    lines = [f"tell({name!r}, lambda: {call})" for name, call in calls.items()]
    body = HEAD + "lineage = calls.send[0].lineage\n" + "\n".join(lines) + "\nverdicts(ids)\n"
    await it.install(write_raw(tmp_path / "src", body, extra=extra))
    await it.recorder.wait(it.send(it.target("raw")))
    await until(lambda: sum(" out " in line for line in it.logs("raw")) >= len(calls))
    found = {}
    for line in it.logs("raw"):
        if " out " in line:
            name, _, rest = line.split(" out  ", 1)[1].partition(" ")
            found[name] = rest
    return found


async def test_everything_is_denied_without_grants(tmp_path: Path) -> None:
    calls = {
        "send": f"api.SendMessage({SEND.format(uid='bot')}))",
        "by_id": "api.GetMessages(host_pb2.GetMessagesRequest(message_ids=[1]))",
        "range": "api.ListMessages(host_pb2.ListMessagesRequest(channel_id='g1', channel_type=2))",
        "channel": "api.GetChannel(host_pb2.GetChannelRequest(channel_id='g1', channel_type=2))",
        "user": "api.GetUser(host_pb2.GetUserRequest(uid='u1'))",
        "kv": "api.KvPut(host_pb2.KvPutRequest(key=b'k'))",
    }
    grants = {
        "send": "send_as",
        "by_id": "messages_read",
        "range": "messages_read",
        "channel": "channels_read",
        "user": "users_read",
        "kv": "kv_bytes",
    }
    async with running(tmp_path) as it:
        found = await results(it, tmp_path, calls, "")
        for name, grant in grants.items():
            assert found[name].startswith(f"PERMISSION_DENIED capabilities.{grant}: not granted")
        assert it.services.sent == []


async def test_sends_as_granted_uids_only_and_never_as_a_system_uid_by_pattern(
    tmp_path: Path,
) -> None:
    calls = {
        "bot": f"api.SendMessage({SEND.format(uid='bot_1')}, no_persist=True))",
        "other": f"api.SendMessage({SEND.format(uid='u1')}))",
        "server": f"api.SendMessage({SEND.format(uid='____system')}))",
        "system": f"api.SendMessage({SEND.format(uid='bot_sys')}))",
        "nobody": f"api.SendMessage({SEND.format(uid='')}))",
        "empty": "api.SendMessage(host_pb2.SendMessageRequest(channel_id='u2', channel_type=1, "
        "from_uid='bot_1'))",
        "type": "api.SendMessage(host_pb2.SendMessageRequest(channel_id='u2', from_uid='bot_1', "
        "payload=b'x'))",
        "garbage": "channel.unary_unary('/wkhost.plugin.v1.HostApi/SendMessage')(b'\\xff\\xff')",
        "caused": f"api.SendMessage({SEND.format(uid='bot_1')}, lineage=lineage))",
        "forged": f"api.SendMessage({SEND.format(uid='bot_1')}, lineage=bytes(30)))",
    }
    async with running(tmp_path) as it:
        it.store.write(mutations.put_system_uids(["bot_sys"]))
        extra = '[capabilities]\nsend_as = ["bot_*", "____*"]\n'
        found = await results(it, tmp_path, calls, extra)
        assert "reason_code: 1" in found["bot"]
        for name in ("other", "server", "system"):
            assert found[name].startswith("PERMISSION_DENIED capabilities.send_as")
        assert found["nobody"].startswith("INVALID_ARGUMENT from_uid: expected 1 to")
        assert found["empty"].startswith("INVALID_ARGUMENT payload: expected 1 to")
        assert found["type"].startswith("INVALID_ARGUMENT channel_type: expected 1 to 255")
        assert found["garbage"].startswith("INVALID_ARGUMENT request: not decodable")
        assert "reason_code: 1 " in found["caused"]
        assert "reason_code: 11" in found["forged"]
        assert "plugin_loop" in found["forged"]
        assert [(door, hop) for _, door, hop in it.services.sent] == [("raw", 1), ("raw", 1)]
        assert it.services.sent[0][0].flags == 1
        assert it.services.sent[0][0].client_msg_no


async def test_a_lineage_ends_with_its_call_and_at_hop_four(tmp_path: Path) -> None:
    send = f"api.SendMessage({SEND.format(uid='bot')}, lineage=call.lineage))"
    body = HEAD + (
        "for call in calls.send:\n"
        f"    tell('hop', lambda: {send})\n"
        "verdicts(ids)\n"
        "time.sleep(0.2)\n"
        f"tell('late', lambda: {send})\n"
    )
    async with running(tmp_path) as it:
        extra = '[capabilities]\nsend_as = ["bot"]\n'
        await it.install(write_raw(tmp_path / "src", body, extra=extra))
        target = it.target("raw")
        from tests.integration.plugin_host.kit import CLIENT
        from wkhost.hooks.target import SendCall

        for call_id, hop in ((1, 3), (2, 4)):
            target.submit_send(SendCall(call_id, message(hop=hop), CLIENT, trio.current_time() + 5))
            await it.recorder.wait(call_id)
            await until(lambda n=call_id: sum(" late " in x for x in it.logs("raw")) == n)  # type: ignore[misc]
        hops = [line for line in it.logs("raw") if " hop " in line]
        assert "reason_code: 1 " in hops[0]
        assert "reason_code: 11" in hops[1]
        assert all("reason_code: 11" in line for line in it.logs("raw") if " late " in line)
        assert [hop for _, _, hop in it.services.sent] == [4]


async def test_sends_without_lineage_are_held_to_the_rate(tmp_path: Path) -> None:
    calls: dict[str, Any] = {
        f"n{i}": f"api.SendMessage({SEND.format(uid='bot')}))" for i in range(8)
    }
    async with running(tmp_path) as it:
        extra = '[capabilities]\nsend_as = ["*"]\nsend_rate = 3\n'
        found = await results(it, tmp_path, calls, extra)
        refused = [text for text in found.values() if text.startswith("RESOURCE_EXHAUSTED")]
        assert 4 <= len(refused) <= 5
        assert "send_rate: 3 sends per second granted" in refused[0]


async def test_reads_are_scoped(tmp_path: Path) -> None:
    ids = "host_pb2.GetMessagesRequest(message_ids=[1, 2, 3, 99, 2**64 - 1])"
    calls = {
        "ids": f"[m.message_id for m in api.GetMessages({ids}).messages]",
        "team": "[m.message_seq for m in api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='team-1', channel_type=2, limit=2, newest_first=True)).messages]",
        "more": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='team-1', channel_type=2, limit=2)).more",
        "all": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='team-1', channel_type=2, limit=3)).more",
        "other": "api.ListMessages(host_pb2.ListMessagesRequest(channel_id='x', channel_type=2))",
        "person": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='u2@helper', channel_type=1)).more",
        "strange": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='u2@u1', channel_type=1))",
        "limit": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='team-1', channel_type=2, limit=257))",
        "range": "api.ListMessages(host_pb2.ListMessagesRequest("
        "channel_id='team-1', channel_type=2, first_seq=5, last_seq=4))",
    }
    async with running(tmp_path) as it:
        rows = [("team-1", 1), ("x", 1), ("team-1", 2), ("team-1", 3)]
        it.store.append(
            [
                message(
                    message_id=i, channel_id=channel, channel_type=2, message_seq=seq, log_pos=i
                )
                for i, (channel, seq) in enumerate(rows, 1)
            ]
        )
        await it.store.sync()
        extra = '[capabilities]\nmessages_read = ["2:team-*", "1:helper"]\n'
        found = await results(it, tmp_path, calls, extra)
        assert found["ids"] == "OK [1, 3]"
        assert found["team"] == "OK [2, 3]"
        assert (found["more"], found["all"]) == ("OK True", "OK False")
        assert found["other"].startswith("PERMISSION_DENIED capabilities.messages_read")
        assert found["person"] == "OK False"
        assert found["strange"].startswith("PERMISSION_DENIED")
        assert found["limit"].startswith("INVALID_ARGUMENT limit: expected at most 256")
        assert found["range"].startswith("INVALID_ARGUMENT first_seq: expected at most last_seq")


async def test_channels_users_and_values(tmp_path: Path) -> None:
    calls = {
        "channel": "api.GetChannel(host_pb2.GetChannelRequest(channel_id='g1', channel_type=2))",
        "user": "api.GetUser(host_pb2.GetUserRequest(uid='u1'))",
        "put": "api.KvPut(host_pb2.KvPutRequest(key=b'k', value=b'v', if_version=0)).version > 0",
        "again": "api.KvPut(host_pb2.KvPutRequest(key=b'k', value=b'v', if_version=0))",
        "get": "api.KvGet(host_pb2.KvGetRequest(key=b'k')).value",
        "large": "api.KvPut(host_pb2.KvPutRequest(key=b'l', value=bytes(2000)))",
        "scan": "[e.key for e in api.KvScan(host_pb2.KvScanRequest(prefix=b'k')).entries]",
        "delete": "api.KvDelete(host_pb2.KvDeleteRequest(key=b'k')).deleted",
    }
    async with running(tmp_path) as it:
        it.store.write(
            mutations.put_channel("g1", 2, ChannelInfo(ban=True))
            + mutations.put_members(MemberKind.SUBSCRIBER, "g1", 2, ["u1", "u2"])
            + mutations.put_user("u1")
        )
        it.services.online["u1"] = [OnlineDevice(1, 0, "browser")]
        extra = "[capabilities]\nchannels_read = true\nusers_read = true\nkv_bytes = 1000\n"
        found = await results(it, tmp_path, calls, extra)
        assert found["channel"] == "OK exists: true ban: true subscriber_count: 2 "
        assert 'device_id: "browser"' in found["user"]
        assert found["put"] == "OK True"
        assert found["again"].startswith("ABORTED if_version: expected ")
        assert found["get"] == "OK b'v'"
        assert found["large"].startswith("RESOURCE_EXHAUSTED kv_bytes: 1000 bytes granted")
        assert found["scan"] == "OK [b'k']"
        assert found["delete"] == "OK True"


async def test_calls_before_the_handshake_are_refused(tmp_path: Path) -> None:
    body = HEAD + (
        "tell('early', lambda: api.KvGet(host_pb2.KvGetRequest(key=b'k')))\nsys.exit('gave up')\n"
    )
    async with running(tmp_path) as it:
        source = write_raw(
            tmp_path / "src", body, serve=False, extra="[capabilities]\nkv_bytes = 1\n"
        )
        with pytest.raises(Exception, match="did not start"):
            await it.install(source)
        assert any("FAILED_PRECONDITION expected Hooks.Connect" in x for x in it.logs("raw"))


async def test_calls_beyond_the_rate_of_the_manifest_wait(tmp_path: Path) -> None:
    body = """
began = time.monotonic()
for _ in range(64):
    api.KvGet(host_pb2.KvGetRequest(key=b'k'))
burst = time.monotonic() - began
for _ in range(10):
    api.KvGet(host_pb2.KvGetRequest(key=b'k'))
print('TOOK', burst, time.monotonic() - began, flush=True)
verdicts(ids)
"""
    extra = "[capabilities]\nkv_bytes = 1\n[limits]\ncalls_per_s = 20\n"
    async with running(tmp_path) as it:
        await it.install(write_raw(tmp_path / "src", body, extra=extra))
        await it.recorder.wait(it.send(it.target("raw")))
        await until(lambda: any("TOOK" in line for line in it.logs("raw")))
        burst, took = next(x for x in it.logs("raw") if "TOOK" in x).split()[-2:]
    assert float(burst) < 0.4
    assert 0.45 <= float(took) < 2
