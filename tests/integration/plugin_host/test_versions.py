"""Versions side by side: upgrade, rollback and what goes with them, with real processes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import trio

from tests.integration.plugin_host.kit import Running, running, until, write_plugin
from tests.integration.plugin_host.test_observers import store
from wkhost.errors import PluginError
from wkhost.hooks.target import Answer
from wkhost.hooks.verdict import Continue, Refuse
from wkhost.link.contract import (
    GetPluginVersions,
    GrantPlugin,
    InspectPlugin,
    InstallPlugin,
    PluginVersions,
    RollbackPlugin,
    UpgradePlugin,
)
from wkhost.plugin_host.kv import KeyValues
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.plugin_host.rules import Rules

KEEPER = """
from plugin_sdk import *

class Keeper(Plugin):
    @hook
    async def start(self):
        await self.host.kv.put(b"start", b"VERSION")

    @hook
    async def send(self, message):
        word, _, value = message.payload.partition(b"=")
        if word == b"put":
            await self.host.kv.put(b"value", value)
            return None
        found = await self.host.kv.get(b"value")
        start = await self.host.kv.get(b"start")
        text = (found.value if found else b"-") + b" " + start.value
        return Refuse(150 + self.config["level"], text.decode())

    @hook
    async def persist_after(self, messages):
        for message in messages:
            await self.host.kv.put(b"seen", str(message.message_id).encode())
"""
HOOKS = "[hooks.send]\npayload = true\n[hooks.persist_after]\n"
EXTRA = '[capabilities]\nkv_bytes = 65536\n[config]\nlevel = 1\n[schema.level]\ntype = "integer"\n'


def keeper(folder: Path, version: str, extra: str = EXTRA, hooks: str = HOOKS) -> str:
    code = KEEPER.replace("VERSION", version)
    return write_plugin(folder, "keeper", code, hooks=hooks, version=version, extra=extra)


async def ask(it: Running, payload: bytes, no: str = "keeper") -> Answer:
    (answer,) = await it.recorder.wait(it.send(it.target(no), payload))
    return answer


async def versions(it: Running, no: str = "keeper") -> PluginVersions:
    return await it.host.versions.versions(GetPluginVersions(no))


async def test_a_rollback_brings_back_values_settings_and_places(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(keeper(tmp_path / "src", "1.0.0"))
        await it.configure("keeper", level=2)
        assert await ask(it, b"put=one") == Continue()
        assert await ask(it, b"?") == Refuse(152, "one 1.0.0")
        await store(it, 3)
        await until(
            lambda: it.host.statistics()["keeper"]["observers"]["persist_after"]["lag"] == 0
        )

        await it.install(keeper(tmp_path / "src", "2.0.0"))
        assert await ask(it, b"?") == Refuse(152, "one 2.0.0"), "values and settings come along"
        await it.configure("keeper", level=3)
        assert await ask(it, b"put=two") == Continue()
        await store(it, 3, first=4)
        await until(
            lambda: it.host.statistics()["keeper"]["observers"]["persist_after"]["lag"] == 0
        )

        began = trio.current_time()
        status = await it.host.versions.rollback(RollbackPlugin("keeper"))
        took = trio.current_time() - began
        assert (status.version, status.state) == ("1.0.0", "running")
        assert await ask(it, b"?") == Refuse(152, "one 1.0.0")
        assert took < 2, "the rule for a rollback"
        await until(
            lambda: it.host.statistics()["keeper"]["observers"]["persist_after"]["lag"] == 0
        )
        entry = it.host.catalog.registry.get("keeper")
        assert [snapshot.version for snapshot in entry.snapshots] == ["2.0.0"]
        assert entry.snapshots[0].cursors == {"persist_after": 6}

        # Forward again, to the very values that were left.
        status = await it.host.versions.rollback(RollbackPlugin("keeper", entry.snapshots[0].name))
        assert status.version == "2.0.0"
        assert await ask(it, b"?") == Refuse(153, "two 2.0.0")
        found = await versions(it)
        assert [(r.version, r.in_use) for r in found.releases] == [
            ("1.0.0", False),
            ("2.0.0", True),
        ]


async def test_a_restored_observer_sees_again_what_came_since(tmp_path: Path) -> None:
    code = (
        "from plugin_sdk import *\nimport json\nclass Seer(Plugin):\n"
        "    @hook\n    def persist_after(self, messages):\n"
        "        with open(self.data_dir / 'seen', 'a') as file:\n"
        "            file.write(json.dumps([m.message_id for m in messages]) + '\\n')\n"
    )
    path = tmp_path / "plugins" / "seer" / "data" / "seen"

    def seen() -> list[int]:
        return [i for line in path.read_text().splitlines() for i in json.loads(line)]

    def write(version: str) -> str:
        hooks = "[hooks.persist_after]\n"
        return write_plugin(tmp_path / "src", "seer", code, hooks=hooks, version=version)

    async with running(tmp_path) as it:
        await it.install(write("1"))
        await store(it, 2)
        await until(lambda: path.exists() and seen() == [1, 2])
        await it.install(write("2"))
        await store(it, 2, first=3)
        await until(lambda: seen() == [1, 2, 3, 4])
        await it.host.versions.rollback(RollbackPlugin("seer"))
        await until(lambda: seen() == [1, 2, 3, 4, 3, 4])


async def test_an_upgrade_that_does_not_start_leaves_no_trace_in_the_values(tmp_path: Path) -> None:
    broken = KEEPER.replace('b"VERSION")', 'b"broken")\n        raise RuntimeError("no")')
    async with running(tmp_path) as it:
        await it.install(keeper(tmp_path / "src", "1.0.0"))
        await ask(it, b"put=one")
        source = write_plugin(
            tmp_path / "src", "keeper", broken, hooks=HOOKS, version="2", extra=EXTRA
        )
        with pytest.raises(PluginError, match="RuntimeError: no"):
            await it.install(source)
        assert await ask(it, b"?") == Refuse(151, "one 1.0.0")
        entry = it.host.catalog.registry.get("keeper")
        assert (entry.version, entry.space, entry.snapshots) == ("1.0.0", 0, ())
        await store(it, 1)
        await until(
            lambda: it.host.statistics()["keeper"]["observers"]["persist_after"]["lag"] == 0
        )


async def test_a_version_that_is_not_healthy_does_not_take_over(tmp_path: Path) -> None:
    sick = KEEPER + '\n    @hook\n    def health(self):\n        return Veto("the index is gone")\n'
    async with running(tmp_path) as it:
        first = await it.install(keeper(tmp_path / "src", "1.0.0"))
        source = write_plugin(
            tmp_path / "src", "keeper", sick, hooks=HOOKS, version="2", extra=EXTRA
        )
        with pytest.raises(PluginError, match="is not healthy: the index is gone"):
            await it.install(source)
        status = it.host.info("keeper")
        assert (status.pid, status.version, status.state) == (first.pid, "1.0.0", "running")


SLOW_WRITER = """
import asyncio
from plugin_sdk import *

class Keeper(Plugin):
    @hook
    async def send(self, message):
        if message.attempt == 1 and message.payload == b"slow":
            while not (self.data_dir / "go").exists():
                await asyncio.sleep(0.01)
        await self.host.kv.put(message.payload, b"VERSION")
"""


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
async def test_a_superseded_generation_cannot_write_and_its_calls_do_not_fail(
    tmp_path: Path, version: str
) -> None:
    """A reload (the same version) and an upgrade: the refused write moves the call."""
    extra = "[capabilities]\nkv_bytes = 65536\n"

    def write(version: str) -> str:
        code = SLOW_WRITER.replace("VERSION", version)
        return write_plugin(tmp_path / "src", "keeper", code, version=version, extra=extra)

    async with running(tmp_path) as it:
        await it.install(write("1.0.0"))
        calls = [it.send(it.target("keeper"), b"slow") for _ in range(5)]
        target = it.target("keeper")
        assert isinstance(target, PluginProxy)
        session = target.session
        assert session is not None
        await until(lambda: all(map(session.is_open, calls)))
        if version == "1.0.0":
            await it.host.reload("keeper")
        else:
            await it.install(write(version))
        (tmp_path / "plugins" / "keeper" / "data" / "go").touch()
        assert set(await it.recorder.wait(*calls)) == {Continue()}
        entry = it.host.catalog.registry.get("keeper")
        kept = it.host.plugin_values("keeper", b"").values
        assert kept == [(b"slow", version.encode())], entry


async def test_values_written_while_the_copy_is_made_come_along(tmp_path: Path) -> None:
    late = KEEPER.replace(
        'await self.host.kv.put(b"start", b"VERSION")',
        'await self.host.kv.put(b"start", b"2")\n        import asyncio\n'
        "        await asyncio.sleep(0.5)",
    )
    async with running(tmp_path) as it:
        await it.install(keeper(tmp_path / "src", "1.0.0"))
        await ask(it, b"put=early")
        source = write_plugin(
            tmp_path / "src", "keeper", late, hooks=HOOKS, version="2.0.0", extra=EXTRA
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.install, source)
            await until(lambda: it.host.info("keeper").state == "reloading")
            await trio.sleep(0.3)
            await ask(it, b"put=late")
        assert await ask(it, b"?") == Refuse(151, "late 2")
        await it.host.versions.rollback(RollbackPlugin("keeper"))
        assert await ask(it, b"?") == Refuse(151, "late 1.0.0")


async def test_more_is_not_taken_without_consent_and_less_is_narrowed(tmp_path: Path) -> None:
    more = EXTRA.replace("kv_bytes = 65536", "kv_bytes = 99999\nusers_read = true")
    async with running(tmp_path) as it:
        await it.install(keeper(tmp_path / "src", "1.0.0"))
        with pytest.raises(PluginError, match=r"waits for consent: users_read .*kv_bytes=99999"):
            await it.install(keeper(tmp_path / "src", "2.0.0", more), granted=[])
        assert it.host.info("keeper").version == "1.0.0"
        with pytest.raises(PluginError, match=r"nobody has agreed to 2\.0\.0"):
            await it.host.versions.rollback(RollbackPlugin("keeper", "2.0.0"))
        (waiting,) = [r for r in (await versions(it)).releases if r.waiting]
        names = [ask.name for ask in waiting.waiting]
        assert names == ["users_read", "kv_bytes=99999"]
        with pytest.raises(PluginError, match="waits for consent to: kv_bytes"):
            await it.host.versions.upgrade(UpgradePlugin("keeper", waiting.digest, ["users_read"]))
        status = await it.host.versions.upgrade(UpgradePlugin("keeper", waiting.digest, names))
        assert (status.version, status.state) == ("2.0.0", "running")

        less = await it.install(
            keeper(tmp_path / "src", "3.0.0", hooks="[hooks.send]\n[hooks.persist_after]\n"),
            granted=[],
        )
        assert less.version == "3.0.0"
        granted = it.host.catalog.registry.get("keeper").granted
        assert granted == ("hook.send", "hook.persist_after", "kv_bytes=99999") or granted == (
            "hook.send",
            "hook.persist_after",
            "kv_bytes=65536",
            "kv_bytes=99999",
        )
        assert "users_read" not in (granted or ())


async def test_a_package_that_changed_another_source_and_an_older_one_are_refused(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        await it.install(keeper(tmp_path / "src", "2.0.0"))
        source = keeper(tmp_path / "src", "1.9.0")
        with pytest.raises(PluginError, match=r"1\.9\.0 is older than the installed 2\.0\.0"):
            await it.install(source)
        await it.install(source, allow_downgrade=True)
        elsewhere = keeper(tmp_path / "other" / "src", "2.1.0")
        with pytest.raises(PluginError, match=r"is installed from .*--replace-source"):
            await it.install(elsewhere)
        await it.install(elsewhere, replace_source=True)
        with pytest.raises(PluginError, match="expected the digest that you agree to"):
            await it.install(elsewhere, digest="")
        with pytest.raises(PluginError, match="not what you agreed to"):
            await it.install(elsewhere, digest="sha256:" + "0" * 64)
        assert it.host.info("keeper").version == "2.1.0"


async def test_grants_hold_from_the_next_call(tmp_path: Path) -> None:
    code = """
from plugin_sdk import *

class Peeker(Plugin):
    @hook
    async def send(self, message):
        try:
            user = await self.host.get_user("u1")
        except HostError as error:
            return Refuse(200, f"{len(message.payload)} denied")
        return Refuse(200, f"{len(message.payload)} allowed")
"""
    extra = "[capabilities]\nusers_read = true\n"

    def grant(name: str, *, granted: bool) -> GrantPlugin:
        return GrantPlugin("peeker", name, granted)

    async with running(tmp_path) as it:
        first = await it.install(write_plugin(tmp_path / "src", "peeker", code, extra=extra))
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 allowed")
        await it.host.versions.grant(grant("users_read", granted=False))
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 denied")
        await it.host.versions.grant(grant("hook.send.payload", granted=False))
        assert await ask(it, b"four", "peeker") == Refuse(200, "0 denied")
        for name in ("users_read", "hook.send.payload"):
            await it.host.versions.grant(grant(name, granted=True))
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 allowed")
        await it.host.versions.grant(grant("hook.send", granted=False))
        assert it.chain.send == ()
        await it.host.versions.grant(grant("hook.send", granted=True))
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 allowed")
        assert it.host.info("peeker").pid == first.pid, "the same process all the time"
        await it.host.versions.grant(grant("users_read", granted=False))
        await it.host.reload("peeker")
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 denied")
        # What was revoked stays so when a new version asks for it.
        newer = write_plugin(tmp_path / "src", "peeker", code, extra=extra, version="2")
        await it.install(newer)
        assert await ask(it, b"four", "peeker") == Refuse(200, "4 denied")


async def test_values_follow_an_upgrade_that_was_made_while_no_server_ran(tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with running(tmp_path, store_path=path) as it:
        await it.install(keeper(tmp_path / "src", "1.0.0"))
        await ask(it, b"put=kept")
        catalog = it.host.catalog
    source = keeper(tmp_path / "src", "2.0.0")
    catalog.install(InstallPlugin(source, digest=catalog.propose(source).digest))
    async with running(tmp_path, store_path=path) as it:
        await it.host.start_set(None)
        assert await ask(it, b"?") == Refuse(151, "kept 2.0.0")
        await ask(it, b"put=new")
        await it.host.versions.rollback(RollbackPlugin("keeper"))
        assert await ask(it, b"?") == Refuse(151, "kept 1.0.0")


async def test_old_versions_and_snapshots_are_pruned(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        for number in range(8):
            await it.install(keeper(tmp_path / "src", f"1.{number}"))
            await ask(it, b"put=%d" % number)
        found = await versions(it)
        assert len(found.snapshots) == 5
        assert len(found.releases) == 6
        folders = {p.name for p in (tmp_path / "plugins" / "keeper").iterdir()}
        assert len(folders) == 7, folders
        entry = it.host.catalog.registry.get("keeper")
        kept = {s.space for s in entry.snapshots} | {entry.space}
        for space in range(entry.last_space + 1):
            rows, _ = KeyValues("keeper", it.store, space).scan(b"", b"", 10)
            assert bool(rows) == (space in kept), space
        await it.host.versions.rollback(RollbackPlugin("keeper", "1.3"))
        assert await ask(it, b"?") == Refuse(151, "3 1.3")
        with pytest.raises(PluginError, match=r"no version '1\.0'"):
            await it.host.versions.rollback(RollbackPlugin("keeper", "1.0"))


BAD = {
    "errors": 'if message.payload == b"x": raise ValueError("a bug")',
    "slow": "import time; time.sleep(0.05)",
    "crash": 'import os; os._exit(3) if message.payload == b"die" else None',
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_worse_version_gives_way_by_itself(tmp_path: Path, kind: str) -> None:
    def write(version: str, body: str) -> str:
        code = (
            "from plugin_sdk import *\nclass Echo(Plugin):\n    @hook\n"
            f"    def send(self, message):\n        {body}\n"
        )
        return write_plugin(tmp_path / "src", code=code, version=version)

    async with running(tmp_path, rules=Rules(probation_s=30)) as it:
        record = it.host.records.record
        await it.install(write("1", "return None"))

        async def call(version: str, payload: bytes) -> None:
            began = trio.current_time()
            target = it.target("echo")
            if not target.ready:
                return
            (answer,) = await it.recorder.wait(it.send(target, payload))
            record("echo", "send", version).took(trio.current_time() - began)
            record("echo", "send", version).count(answer)

        for _ in range(60):
            await call("1", b"x")
        await it.install(write("2", BAD[kind]))
        with trio.fail_after(20):
            while it.host.info("echo").version == "2":
                await call("2", b"die" if kind == "crash" else b"x")
                await trio.sleep(0.005)
        await until(lambda: it.host.info("echo").state == "running")
        await it.host.versions.inspect(
            InspectPlugin(write("1", "return None"))
        )  # waits for the change
        (bad,) = [r for r in (await versions(it, "echo")).releases if r.version == "2"]
        assert bad.withdrawn.startswith("2 was taken back: ")
        words = {"errors": "calls failed", "slow": "one call in ten", "crash": "it died"}
        assert words[kind] in bad.withdrawn
        assert any(f"host {bad.withdrawn}; the version" in line for line in it.logs("echo"))
        (answer,) = await it.recorder.wait(it.send(it.target("echo"), b"x"))
        assert answer == Continue()


async def test_a_good_version_stays(tmp_path: Path) -> None:
    async with running(tmp_path, rules=Rules(probation_s=0.5)) as it:
        await it.install(write_plugin(tmp_path / "src", version="1"))
        await it.install(write_plugin(tmp_path / "src", version="2"))
        target = it.target("echo")
        for _ in range(60):
            assert await it.recorder.wait(it.send(target)) == [Continue()]
            await trio.sleep(0.01)
        assert it.host.info("echo").version == "2"


SHARED = """
import asyncio, sqlite3
from plugin_sdk import *

class Shared(Plugin):
    @hook
    async def send(self, message):
        base = sqlite3.connect(self.data_dir / "base.db", timeout=5)
        base.execute("create table if not exists seen (id integer primary key, who text)")
        base.execute("insert into seen values (?, ?)", (message.message_id, "VERSION"))
        base.commit()
        base.close()
        if message.payload == b"slow":
            await asyncio.sleep(0.3)
"""


async def test_two_generations_share_one_sqlite_file(tmp_path: Path) -> None:
    """The data folder is the plugin's, not a generation's: both write to it while one drains."""

    def write(version: str) -> str:
        code = SHARED.replace("VERSION", version)
        return write_plugin(tmp_path / "src", "shared", code, version=version)

    async with running(tmp_path) as it:
        await it.install(write("1"))
        calls: list[int] = []
        done = trio.Event()

        async def load() -> None:
            while not done.is_set():
                payload = b"slow" if len(calls) % 5 == 0 else b"x"
                calls.append(it.send(it.target("shared"), payload))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await it.install(write("2"))
            await trio.sleep(0.2)
            done.set()
        assert set(await it.recorder.wait(*calls)) == {Continue()}
        base = sqlite3.connect(tmp_path / "plugins" / "shared" / "data" / "base.db")
        rows = base.execute("select id, who from seen").fetchall()
        base.close()
        assert sorted(i for i, _ in rows) == calls
        assert {who for _, who in rows} == {"1", "2"}
