"""Settings and secrets of running plugins: checked, put to the plugin, stored, used; or not."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.plugin_host.kit import Running, running, until, write_plugin
from wkhost.errors import PluginError
from wkhost.hooks.verdict import Refuse
from wkhost.link import contract as c
from wkhost.plugin_host import tuning
from wkhost.plugin_host.secret_store import SecretKey, generate_key

LEVELS = """
import time
from plugin_sdk import Plugin, Refuse, Veto, hook

class Levels(Plugin):
    @hook
    def send(self, message):
        return Refuse(100 + self.config["level"], self.config["table"]["name"])

    @hook(blocking=True)
    def config_update(self, config):
        time.sleep(config["table"].get("sleep", 0))
        if config["table"].get("die"):
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        if config["level"] > 5:
            return Veto("level is too high")
"""
SCHEMA = """
[config]
level = 1
[config.table]
name = "first"
other = 1
[schema.level]
type = "integer"
min = 0
max = 9
help = "How much."
[schema.key]
type = "text"
secret = true
"""


async def level(it: Running) -> int:
    (answer,) = await it.recorder.wait(it.send(it.target("levels")))
    assert isinstance(answer, Refuse)
    return answer.code - 100


async def install(it: Running, folder: Path) -> None:
    await it.install(write_plugin(folder / "src", "levels", LEVELS, extra=SCHEMA))


async def change(it: Running, **fields: Any) -> c.PluginConfig:
    return await it.host.tuning.configure(c.SetPluginConfig("levels", **fields), by=7)


async def test_a_change_holds_from_the_next_call_and_is_kept_with_its_history(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        assert await level(it) == 1
        first = await change(it, values={"level": 3})
        assert await level(it) == 3
        second = await change(it, values={"table.name": "second"}, expect=first.number)
        assert second.values == {"level": 3, "table": {"name": "second", "other": 1}}
        assert [(v.number, v.by, v.overrides) for v in second.history] == [
            (1, -1, {}),
            (2, 7, {"level": 3}),
            (3, 7, {"level": 3, "table": {"name": "second", "other": 1}}),
        ]
        undone = await change(it, restore=2)
        assert undone.number == 4
        assert undone.values["table"]["name"] == "first"
        assert await level(it) == 3
        assert (await change(it, unset=["level"])).values["level"] == 1
        assert await level(it) == 1
    async with running(tmp_path) as it:
        await it.host.start_set(None)
        assert await level(it) == 1
        assert (await it.host.tuning.config(c.GetPluginConfig("levels"))).number == 5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"values": {"level": 7}}, "too high; nothing was changed.*--reload"),
        ({"values": {"level": 17}}, "at most 9"),
        ({"values": {"level": "3"}}, "type integer"),
        ({"values": {"unknown": 3}}, "unknown setting"),
        ({"values": {"key": "x"}}, "is a secret"),
        ({"values": {"level.x": 3}}, "inside a table"),
        ({"values": {"level": 2}, "expect": 9}, "number 1 now, expected 9"),
        ({"unset": ["level"]}, "is not set"),
        ({"restore": 5}, "no configuration 5"),
        ({"values": {"table.big": "x" * 200_000}}, "at most 131072 bytes"),
    ],
)
async def test_a_refused_change_changes_nothing(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        before = it.host.catalog.registry.get("levels")
        with pytest.raises(PluginError, match=words):
            await change(it, **fields)
        after = it.host.catalog.registry.get("levels")
        assert (after.config, after.config_number) == (before.config, before.config_number)
        assert await level(it) == 1


async def test_a_plugin_that_dies_when_it_is_asked_goes_on_with_the_old(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        pid = it.host.info("levels").pid
        with pytest.raises(PluginError, match="did not accept"):
            await change(it, values={"level": 2, "table.die": True})
        await until(lambda: it.host.info("levels").pid not in (0, pid))
        assert it.host.catalog.registry.get("levels").config == {}
        assert await level(it) == 1


async def test_silence_is_a_veto_and_a_late_yes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CONFIG_BUDGET_S", 0.2)
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        with pytest.raises(PluginError, match="did not accept"):
            await change(it, values={"level": 4, "table.sleep": 0.5})
        assert await level(it) == 1
        # The late answer to the refused one must not pass for the answer to this one.
        done = await change(it, values={"level": 2})
        assert done.number == 3
        await trio.sleep(0.6)
        assert await level(it) == 2


async def test_a_reload_takes_what_the_running_process_would_refuse(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        generation = it.host.info("levels").generation
        answer = await change(it, values={"level": 8}, reload=True)
        assert answer.values["level"] == 8
        assert await level(it) == 8
        assert it.host.info("levels").generation > generation


async def test_a_reload_that_does_not_start_leaves_the_old_settings(tmp_path: Path) -> None:
    code = LEVELS + '\n    @hook\n    def start(self):\n        self.config["level"] < 5 or 1 / 0\n'
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "levels", code, extra=SCHEMA))
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            await change(it, values={"level": 8}, reload=True)
        assert it.host.catalog.registry.get("levels").config == {}
        assert await level(it) == 1


async def test_changes_at_once_happen_one_after_the_other(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        failed: list[str] = []

        async def one(number: int) -> None:
            try:
                await change(it, values={"level": number}, expect=1)
            except PluginError as error:
                failed.append(str(error))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)
        assert len(failed) == 4
        entry = it.host.catalog.registry.get("levels")
        assert await level(it) == entry.config["level"]


async def test_history_is_bounded_by_count_and_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        for number in range(25):
            answer = await change(it, values={"level": number % 5})
        assert [version.number for version in answer.history] == list(range(7, 27))
        for text in "abc":
            answer = await change(it, values={"table.big": text * 100_000})
        assert len(answer.history) == 2


async def test_the_schema_tells_types_bounds_help_and_secrets(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await install(it, tmp_path)
        schema = (await it.host.tuning.config(c.GetPluginConfig("levels"))).schema
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "level": {
            "type": "integer",
            "description": "How much.",
            "minimum": 0,
            "maximum": 9,
            "default": 1,
        },
        "table": {"type": "object", "default": {"name": "first", "other": 1}},
        "key": {"type": "string", "writeOnly": True},
    }


async def test_a_schema_that_refers_elsewhere_is_refused(tmp_path: Path) -> None:
    extra = '[schema.x]\n"$ref" = "https://evil.test/schema.json"\n'
    async with running(tmp_path) as it:
        with pytest.raises(PluginError, match=r"schema\.x\.\$ref: unknown field"):
            await it.install(write_plugin(tmp_path / "src", "x", extra=extra))


# --- secrets -------------------------------------------------------------------------------------

KEEPER = """
from plugin_sdk import Plugin, Refuse, hook

class Keeper(Plugin):
    @hook
    def start(self):
        self.seen = ["start " + ",".join(self.secrets)]
        print("starting with", self.secrets)

    @hook
    def send(self, message):
        if message.payload == b"raise":
            raise ValueError("failed with " + self.secrets["key"])
        return Refuse(100 + len(self.secrets.get("key", "")), ";".join(self.seen))

    @hook
    def secrets_update(self, names):
        self.seen.append("update " + ",".join(names))
"""
SECRETS = (
    '[schema.key]\ntype = "text"\nsecret = true\n[schema.other]\ntype = "text"\nsecret = true\n'
)
CANARY = "canary-0d15ea5e"


def key(tmp_path: Path) -> SecretKey:
    path = tmp_path / "key"
    if not path.exists():
        generate_key(path)
    return SecretKey(path, tmp_path / "plugins")


async def put(it: Running, name: str, value: str | None, *, rotate: bool = False) -> None:
    await it.host.tuning.set_secret(c.SetPluginSecret("keeper", name, value, rotate))


async def ask(it: Running) -> tuple[int, str]:
    (answer,) = await it.recorder.wait(it.send(it.target("keeper")))
    assert isinstance(answer, Refuse)
    return answer.code - 100, answer.text


async def test_a_secret_reaches_the_running_plugin_and_every_process_after_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, secret_key=key(tmp_path)) as it:
        await it.install(write_plugin(tmp_path / "src", "keeper", KEEPER, extra=SECRETS))
        generation = it.host.info("keeper").generation
        assert await ask(it) == (0, "start ")
        await put(it, "key", CANARY)
        assert await ask(it) == (len(CANARY), "start ;update key")
        await put(it, "key", CANARY + "2", rotate=True)
        assert await ask(it) == (len(CANARY) + 1, "start ;update key;update key")
        assert it.host.info("keeper").generation == generation
        await it.host.reload("keeper")
        assert await ask(it) == (len(CANARY) + 1, "start key")
        pid = it.host.info("keeper").pid
        os.kill(pid, 9)
        await until(lambda: it.host.info("keeper").pid not in (0, pid))
        assert await ask(it) == (len(CANARY) + 1, "start key")
        await put(it, "key", None)
        assert await ask(it) == (0, "start key;update key")


async def test_a_secret_is_not_in_the_hosts_memory_structures_logs_or_errors(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, secret_key=key(tmp_path)) as it:
        await it.install(write_plugin(tmp_path / "src", "keeper", KEEPER, extra=SECRETS))
        await put(it, "key", CANARY)
        failed = it.send(it.target("keeper"), b"raise")
        (answer,) = await it.recorder.wait(failed)
        assert CANARY not in repr(answer)
        assert "[secret key]" in repr(answer)
        await until(lambda: any("ValueError" in line for line in it.logs("keeper")))
        assert CANARY not in "\n".join(it.logs("keeper"))
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, dict) and _holds(each)]
        assert held == []


def _holds(found: dict[Any, Any]) -> bool:
    own = "CANARY"
    return any(v == CANARY and k != own for k, v in list(found.items()) if isinstance(v, str))


@pytest.mark.parametrize(
    ("name", "value", "rotate", "words"),
    [
        ("nokey", "x", False, "there is no secret 'nokey', expected one of: key, other"),
        ("key", "", False, "1 to 16384 bytes"),
        ("other", "x", True, "the secret other is not set"),
        ("other", None, False, "the secret other is not set"),
    ],
)
async def test_what_is_no_secret_is_refused(
    tmp_path: Path, name: str, value: str | None, rotate: bool, words: str
) -> None:
    async with running(tmp_path, secret_key=key(tmp_path)) as it:
        await it.install(write_plugin(tmp_path / "src", "keeper", KEEPER, extra=SECRETS))
        with pytest.raises(PluginError, match=words):
            await put(it, name, value, rotate=rotate)


async def test_a_plugin_whose_secrets_cannot_be_opened_is_not_started(tmp_path: Path) -> None:
    async with running(tmp_path, secret_key=key(tmp_path)) as it:
        await it.install(write_plugin(tmp_path / "src", "keeper", KEEPER, extra=SECRETS))
        await put(it, "key", CANARY)
    async with running(tmp_path) as it:
        await it.host.start_set(None)
        status = it.host.info("keeper")
        assert status.pid == 0
        assert "secret keygen PATH" in status.detail
        assert (await it.host.tuning.secrets(c.GetPluginSecrets("keeper"))).set_at["key"] > 0


async def test_a_default_for_a_secret_is_refused_at_install(tmp_path: Path) -> None:
    extra = f'[config]\nkey = "plain"\n{SECRETS}'
    async with running(tmp_path) as it:
        with pytest.raises(PluginError, match="is a secret"):
            await it.install(write_plugin(tmp_path / "src", "keeper", KEEPER, extra=extra))


async def test_denied_calls_are_in_the_audit_log_with_their_count(tmp_path: Path) -> None:
    code = """
from plugin_sdk import Plugin, Refuse, hook

class Curious(Plugin):
    @hook
    async def send(self, message):
        for _ in range(50):
            try:
                await self.host.kv.get(b"x")
            except Exception as error:
                text = type(error).__name__
        return Refuse(200, text)
"""
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", "curious", code))
        await it.recorder.wait(it.send(it.target("curious")))
    (record,) = [r for r in it.host.auditor.log.read() if r["action"] == "grant_denied"]
    assert record["plugin"] == "curious"
    assert record["details"]["count"] == 50
    assert record["details"]["what"].startswith("capabilities.kv_bytes")


async def test_an_impostor_and_a_refused_peer_of_the_link_are_recorded(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        it.host.auditor.link_refused(c.Actor("operator\n", 7, 42), "plugins may not")
        it.host.auditor.deny("p", "impostor", "uid 7, process 42")
    records = {r["action"]: r for r in it.host.auditor.log.read()}
    assert records["link_refused"]["details"]["what"] == (
        "role 'operator\\n', uid 7, process 42: plugins may not"
    )
    assert records["impostor"]["plugin"] == "p"
