"""`pip install .` alone gives everything: the wheel holds what the server needs at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PARTS = ("wkhost", "plugin_sdk", "plugins")
LEFT_OUT = {"plugin_sdk/pyproject.toml"}
"""Builds the SDK alone; of no use inside a wheel."""


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build a wheel from a copy of the sources, without network; return its members."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(source / "dist")],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = (source / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_packages(wheel_names: set[str]) -> None:
    files = {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".gitignore"
    }
    assert files - wheel_names == LEFT_OUT


def test_the_wheel_holds_nothing_else(wheel_names: set[str]) -> None:
    folders = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert folders == set(PARTS)
    assert "plugins/moderation/plugin.toml" in wheel_names
    assert any(name.startswith("plugin_sdk/template/") for name in wheel_names)
