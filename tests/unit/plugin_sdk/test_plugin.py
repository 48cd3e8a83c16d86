"""Marking handlers, finding the plugin, the template of a new one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plugin_sdk import Message, Plugin, PluginDefinitionError, hook
from plugin_sdk.hooks import SPECS
from plugin_sdk.plugin import find_plugin
from plugin_sdk.template import render
from plugin_sdk.wire.v1 import plugin_pb2


def module(**values: Any) -> ModuleType:
    made = ModuleType("main")
    made.__file__ = "main.py"
    for name, value in values.items():
        setattr(made, name, value)
        if isinstance(value, type):
            value.__module__ = "main"
    return made


def test_every_hook_of_the_wire_has_a_specification_with_a_text() -> None:
    on_wire = {field.name for field in plugin_pb2.CallBatch.DESCRIPTOR.fields} - {"config_number"}
    assert {name for name, spec in SPECS.items() if spec.on_wire} == on_wire
    assert all("Return" in (spec.doc.__doc__ or "") for spec in SPECS.values() if spec.answers)


def test_wrong_marks_say_what_to_change() -> None:
    with pytest.raises(PluginDefinitionError, match="no hook 'sned'; expected one of send"):

        @hook
        def sned(self: Any, message: Message) -> None: ...

    with pytest.raises(PluginDefinitionError, match="send must be a plain function"):

        @hook(blocking=True)
        async def send(self: Any, message: Message) -> None: ...

    with pytest.raises(PluginDefinitionError, match="health has no batch form"):

        @hook(batch=True)
        def health(self: Any) -> None: ...

    with pytest.raises(
        PluginDefinitionError, match=r"expected the arguments \(self, message, uids\)"
    ):

        @hook
        def receive(self: Any, message: Message) -> None: ...


def test_a_method_named_like_a_hook_must_be_marked() -> None:
    with pytest.raises(PluginDefinitionError, match=r"Forgot\.send is named like a hook"):

        class Forgot(Plugin):
            def send(self, message: Message) -> None: ...


def test_a_schema_must_be_a_dataclass() -> None:
    with pytest.raises(PluginDefinitionError, match=r"Loose\.Config: expected a dataclass"):

        class Loose(Plugin):
            class Config:
                word = ""


def test_handlers_are_inherited_and_announced() -> None:
    class Base(Plugin):
        @hook
        def send(self, message: Message) -> None: ...

        @hook
        def start(self) -> None: ...

    class More(Base):
        @dataclass
        class Config:
            word: str = ""

        @hook
        def stop(self, reason: str) -> None: ...

    assert More.wire_hooks() == ["send", "stop"]
    assert Base.wire_hooks() == ["send"]
    assert find_plugin(module(Base=Base, More=More)) is More


def test_the_plugin_is_the_named_one_or_the_only_one() -> None:
    class One(Plugin): ...

    class Two(Plugin): ...

    assert find_plugin(module(One=One)) is One
    assert find_plugin(module(One=One, Two=Two, plugin=Two)) is Two
    with pytest.raises(PluginDefinitionError, match="found One, Two"):
        find_plugin(module(One=One, Two=Two))
    with pytest.raises(PluginDefinitionError, match=r"main\.py: expected one .* found none"):
        find_plugin(module())


def test_a_new_plugin_has_a_valid_manifest_and_a_passing_test(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    files = render("my-first.plugin", folder)
    assert {file.name for file in files} == {"main.py", "test_main.py", "plugin.toml", "README.md"}
    assert not any("{{" in file.read_text("utf-8") for file in files)
    manifest = tomllib.loads((folder / "plugin.toml").read_text("utf-8"))
    assert manifest["plugin"]["no"] == "my-first.plugin"
    run_tests(folder)
    with pytest.raises(FileExistsError):
        render("my-first.plugin", folder)


@pytest.mark.parametrize("name", ["", "Upper", "1st", "../x", "a" * 64])
def test_a_name_that_cannot_be_a_number_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected"):
        render(name, tmp_path / "x")


@pytest.mark.parametrize("name", ["filter_plugin", "bot_plugin"])
def test_the_examples_own_tests_pass(name: str) -> None:
    run_tests(Path("examples").resolve() / name)


def test_the_filter_example_is_at_most_twelve_lines() -> None:
    lines = Path("examples/filter_plugin/main.py").read_text("utf-8").splitlines()
    assert len(lines) <= 12


def run_tests(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    root = str(Path.cwd())
    done = subprocess.run(
        [*command, "-c", "/dev/null"],
        cwd=folder,
        env={"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
