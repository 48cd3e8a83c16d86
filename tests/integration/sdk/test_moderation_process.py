"""The built-in moderation as a real plugin process, from its own folder."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

from tests.integration.sdk.kit import ROOT, TestHost

FOLDER = ROOT / "plugins" / "moderation"


def text(content: str) -> bytes:
    return json.dumps({"type": 1, "content": content}, ensure_ascii=False).encode()


def test_moderation_decides_in_its_own_process(make_host: Callable[..., TestHost]) -> None:
    manifest = tomllib.loads((FOLDER / "plugin.toml").read_text("utf-8"))
    host = make_host(config=manifest["config"])
    shutil.copytree(FOLDER, host.plugin_dir, dirs_exist_ok=True)
    host.start_installed()
    host.ready()
    host.send_calls({1: text("hi"), 2: text("ForbiddenWord"), 3: text("oh Shit 傻逼!")})
    found = host.answers(3)
    assert found == {1: "continue", 2: "refuse", 3: "replace"}
    assert list(host.hello.hooks) == ["send", "config_update", "stop"]


def test_a_missing_word_file_ends_the_process_with_a_reason(
    make_host: Callable[..., TestHost],
) -> None:
    host = make_host(config={"lists": [{"name": "mine", "file": "gone.txt"}]})
    shutil.copytree(FOLDER, host.plugin_dir, dirs_exist_ok=True)
    host.start_installed()
    assert host.wait_exit() == 1
    host.wait_log("config.lists: mine: file: found none of")
    assert str(Path("gone.txt")) in host.log
