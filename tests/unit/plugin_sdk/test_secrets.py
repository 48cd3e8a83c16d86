"""Secrets in the SDK: there when they are asked for, nowhere else."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from plugin_sdk import Message, Plugin, Refuse, hook
from plugin_sdk.log import Log
from plugin_sdk.secrets import Secrets
from plugin_sdk.testing import HandlerFailedError, PluginTest, SyncPluginTest

CANARY = 'ca"na\nry-Ω-7f3a'


class Keeper(Plugin):
    seen: list[tuple[list[str], str]]

    @hook
    def start(self) -> None:
        self.seen = []
        self.at_start = self.secrets.get("key", "")

    @hook
    def send(self, message: Message) -> Refuse | None:
        if message.payload == b"fail":
            raise RuntimeError(f"cannot reach https://x/?key={self.secrets['key']}")
        self.log.info("using", key=self.secrets["key"], nested={"all": list(self.secrets.values())})
        return Refuse(200, "seen") if self.secrets["key"] == "second-value" else None

    @hook
    async def secrets_update(self, names: list[str]) -> None:
        self.seen.append((names, self.secrets["key"]))


def test_a_secret_is_there_from_the_start_and_never_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SyncPluginTest(Keeper, secrets={"key": CANARY}) as test:
        assert test.plugin.at_start == CANARY
        test.send(b"x")
        with pytest.raises(HandlerFailedError, match=r"key=\[secret key\]"):
            test.send(b"fail")
    lines = capsys.readouterr().err.splitlines()
    assert json.loads(lines[0])["key"] == "[secret key]"
    assert len(lines) == 2
    for line in lines:
        assert "7f3a" not in line


async def _rotate() -> None:
    async with PluginTest(Keeper, secrets={"key": "first-value", "other": "same"}) as test:
        assert isinstance(test.plugin, Keeper)
        await test.secrets_update({"key": "second-value", "other": "same"})
        assert test.plugin.seen == [(["key"], "second-value")]
        assert await test.send(b"x") == Refuse(200, "seen")
        await test.secrets_update({"key": "second-value", "other": "same"})
        assert len(test.plugin.seen) == 1


def test_a_rotated_secret_holds_at_once_and_is_told_by_name() -> None:
    import asyncio

    asyncio.run(_rotate())


def test_secrets_show_their_names_and_do_not_leave_by_copies() -> None:
    secrets = Secrets({"key": CANARY})
    assert repr(secrets) == str(secrets) == "<secrets: key>"
    assert "7f3a" not in f"{vars(Keeper)} {secrets!s}"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(secrets)
    with pytest.raises(KeyError, match="'none' is not set"):
        secrets["none"]


def test_an_old_value_stays_hidden_after_a_rotation(capsys: pytest.CaptureFixture[str]) -> None:
    secrets = Secrets({"key": "first-value"})
    log = Log()
    log.hide(secrets)
    bound = log.bind(part="x")
    assert secrets.replace({"key": "second-value"}) == ["key"]
    bound.info("failed", url="http://x/first-value", other="second-value")
    line = capsys.readouterr().err
    assert "first-value" not in line
    assert "second-value" not in line
