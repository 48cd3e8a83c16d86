"""`plugin try` over real copies: plugins that hang, die, do not start, and whose data is copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.integration.plugin_host.kit import running, write_plugin
from wkhost.errors import PluginError
from wkhost.plugin_host.trial import MESSAGE_ID, Trial, TrialSettings, copy_plugins, try_message
from wkhost.types import Message

CODE = """
import asyncio, os
from plugin_sdk import Plugin, Replace, hook

class P(Plugin):
    @hook
    async def send(self, message):
        if message.payload == b"hang":
            await asyncio.sleep(1)
        if message.payload == b"die":
            os._exit(3)
        marks = self.data_dir / "marks"
        marks.write_text((marks.read_text() if marks.exists() else "") + "x")
        return Replace(message.payload + b"+" + marks.read_text().encode())
"""


async def attempt(folder: Path, plugins_dir: Path, payload: bytes) -> Trial:
    message = Message(MESSAGE_ID, "g", 2, "alice", "", payload)
    await trio.Path(folder).mkdir(mode=0o700)
    settings = TrialSettings(budget_s=0.3, max_payload_bytes=1024, host_version="test")
    with trio.fail_after(30):
        return await try_message(message, plugins_dir, folder, {}, settings)


def plugin(folder: Path, no: str, *, policy: str, extra: str = "", code: str = CODE) -> str:
    hooks = f'[hooks.send]\npayload = true\npolicy = "{policy}"\n{extra}'
    return write_plugin(folder / no, no, code, hooks=hooks)


async def test_verdicts_failures_and_policies_are_those_of_the_real_way(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(plugin(tmp_path / "s", "a", policy="open"))
        await it.install(plugin(tmp_path / "s", "b", policy="closed", extra="channel_types = [1]"))
    plugins_dir = tmp_path / "plugins"
    marks = plugins_dir / "a" / "data" / "marks"

    trial = await attempt(tmp_path / "t1", plugins_dir, b"hi")
    a, b = trial.steps
    assert (a.no, a.state, a.outcome, a.before, a.after) == (
        "a",
        "asked",
        "replace",
        b"hi",
        b"hi+x",
    )
    assert 0 < a.took_s < 0.3
    assert (b.no, b.state, b.before) == ("b", "skipped", b"hi+x")
    assert (trial.payload, trial.code) == (b"hi+x", 0)
    assert not marks.exists(), "the copy wrote into its own folder"

    (a, _) = (await attempt(tmp_path / "t2", plugins_dir, b"hang")).steps
    assert (a.outcome, a.policy, a.after) == ("timeout", "open", b"hang")
    (a, _) = (await attempt(tmp_path / "t3", plugins_dir, b"die")).steps
    assert (a.outcome, a.policy, a.after) == ("crash", "open", b"die")


async def test_a_plugin_that_does_not_start_is_named_and_its_policy_decides(
    tmp_path: Path,
) -> None:
    broken = CODE.replace(
        "class P", "if os.path.exists('/nowhere'):\n    pass\nraise SystemExit(4)\nclass P"
    )
    async with running(tmp_path) as it:
        await it.install(plugin(tmp_path / "s", "a", policy="closed", code=broken), enable=False)
        it.host.catalog.registry.change("a", enabled=True)
    trial = await attempt(tmp_path / "t", tmp_path / "plugins", b"hi")
    (problem,) = trial.problems
    assert problem.startswith("a: ")
    (step,) = trial.steps
    assert (step.state, step.outcome, step.policy) == ("not_asked", "crash", "closed")
    assert trial.code == 15


async def test_without_plugins_a_message_goes_on_as_it_is(tmp_path: Path) -> None:
    trial = await attempt(tmp_path / "t", tmp_path / "nothing", b"hi")
    assert (trial.payload, trial.code, trial.steps, trial.problems) == (b"hi", 0, [], [])


def test_a_folder_that_cannot_be_copied_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "copy").mkdir()
    with pytest.raises(PluginError, match="cannot be copied for a dry run"):
        copy_plugins(tmp_path / "plugins", tmp_path / "copy")


async def test_those_that_decide_are_tried_whether_or_not_they_are_enabled(tmp_path: Path) -> None:
    """`wkhost run --plugins` runs others than the enabled ones."""
    async with running(tmp_path) as it:
        await it.install(plugin(tmp_path / "s", "a", policy="open"))
        await it.install(plugin(tmp_path / "s", "b", policy="open"), enable=False)
    folder = tmp_path / "t"
    folder.mkdir(mode=0o700)
    message = Message(MESSAGE_ID, "g", 2, "alice", "", b"hi")
    settings = TrialSettings(budget_s=1.0, max_payload_bytes=1024, host_version="test")
    with trio.fail_after(30):
        trial = await try_message(message, tmp_path / "plugins", folder, {}, settings, ["b"])
    assert [(step.no, step.state) for step in trial.steps] == [("b", "asked")]
    assert trial.problems == []
