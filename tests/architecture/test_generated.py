"""Committed generated files are what their generators write today."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wkhost.config.page import render

ROOT = Path(__file__).parents[2]
STUBS = Path("plugin_sdk/wire/v1")


def test_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is in the test extra")
    environ = dict(os.environ, PYTHON=sys.executable)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    subprocess.run([ROOT / "proto/generate.sh", tmp_path], env=environ, check=True)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / STUBS).iterdir()}
    committed = {
        path.name: path.read_bytes()
        for path in (ROOT / STUBS).glob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert sorted(fresh) == sorted(committed)
    stale = [name for name, content in fresh.items() if committed[name] != content]
    assert stale == [], "run `make stubs`"


def test_the_configuration_page_is_that_of_the_code() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run `make docs`"
