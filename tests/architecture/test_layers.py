"""Imports point down only, and each foreign world sits behind its named files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("types", "errors", "addressing", "config", "clock", "log"),
    ("protocol", "store", "hooks", "metrics"),
    ("delivery",),
    ("kernel",),
    ("link",),
    ("plugin_host", "gateway", "api"),
    ("node_settings", "node_metrics"),
    ("node", "bench"),
    ("cli",),
    ("__main__",),
)
"""Bottom to top. A part may import lower ones, and the lowest layer imports itself."""

CONTRACTS = {"wkhost.link.contract"}
"""Structs that are spoken on both sides of a border: they count as the lowest layer."""

FOREIGN = {
    "h2": ("wkhost/plugin_host/grpc/",),
    "hpack": ("wkhost/plugin_host/grpc/", "plugin_sdk/connection.py"),
    "rocksdict": ("wkhost/store/rocks.py",),
    "grpc": ("wkhost/bench/unary.py",),
    "uvicorn": ("wkhost/api/",),
    "websockets": ("wkhost/gateway/layers.py", "wkhost/bench/silent.py"),
    "yaml": ("wkhost/config/file.py",),
    "click": ("wkhost/cli/", "wkhost/api/worker.py"),
    "rich": ("wkhost/cli/",),
    "ahocorasick": ("plugins/",),
    "prometheus_client": ("wkhost/metrics/",),
}
"""Library -> the files that may import it. Tests may import anything."""


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "wire/v1" not in path.as_posix()]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, those in functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def layer_of(dotted: str) -> int | None:
    """Return the layer of a module of ours, None for the bare package."""
    if any(dotted == each or dotted.startswith(each + ".") for each in CONTRACTS):
        return 0
    parts = dotted.split(".")
    for number, names in enumerate(LAYERS):
        if len(parts) > 1 and parts[1] in names:
            return number
    return None


def test_every_part_has_a_layer() -> None:
    known = {name for names in LAYERS for name in names}
    parts = {
        path.stem
        for path in (ROOT / "wkhost").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert parts <= known


@pytest.mark.parametrize("path", sources("wkhost"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own_layer = layer_of(own)
    wrong = []
    for line, name in imports(path):
        if not name.startswith("wkhost.") or own_layer is None:
            continue
        layer = layer_of(name)
        same_part = name.split(".")[1] == own.split(".")[1]
        down = layer is None or layer < own_layer or (layer == own_layer == 0)
        if not (down or same_part):
            wrong.append(f"line {line}: {name}")
    assert wrong == []


@pytest.mark.parametrize("path", sources("plugin_sdk"), ids=lambda path: path.name)
def test_the_sdk_never_imports_the_server(path: Path) -> None:
    assert [each for each in imports(path) if each[1].split(".")[0] == "wkhost"] == []


@pytest.mark.parametrize("path", sources("plugins"), ids=lambda path: path.parent.name)
def test_plugins_import_the_sdk_and_not_the_server(path: Path) -> None:
    assert [each for each in imports(path) if each[1].split(".")[0] == "wkhost"] == []


def test_the_server_takes_only_the_stubs_from_the_sdk() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources("wkhost")
        for line, name in imports(path)
        if name.split(".")[0] == "plugin_sdk"
        and not name.startswith("plugin_sdk.wire")
        and not (name.startswith("plugin_sdk.template") and path.parent.name == "cli")
    ]
    assert wrong == []


@pytest.mark.parametrize("library", FOREIGN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources("wkhost", "plugin_sdk", "plugins")
        for line, name in imports(path)
        if name.split(".")[0] == library
        and not str(path.relative_to(ROOT)).startswith(FOREIGN[library])
    ]
    assert wrong == []
