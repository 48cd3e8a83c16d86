"""Attacks on how the sandbox is made: symlinks, code before boot, forged reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import msgspec
import pytest
import trio

from tests.attacks.arena import MANIFEST, control_line
from tests.attacks.real import site_of, with_environment
from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import Manifest, parse_manifest
from wkhost.plugin_host.process import LaunchSpec
from wkhost.plugin_host.sandbox.ability import Ability, find_ability
from wkhost.plugin_host.sandbox.bubblewrap import Bubblewrap
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import SandboxPolicy

TELL = 'print(open("/proc/self/status").read(), flush=True)\nimport os\nos._exit(0)\n'


def manifest() -> Manifest:
    return parse_manifest(MANIFEST.format(cpu=100, subprocesses="false", egress="[]").encode())


def layout(folder: Path, code: str = TELL) -> LaunchSpec:
    folder.chmod(0o755)
    for name in ("code", "data", "run"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "code" / "main.py").write_text(code)
    return LaunchSpec(manifest(), 1, folder / "code", folder / "data", folder / "run")


async def read_all(descriptor: int) -> bytes:
    found = b""
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        data = os.read(descriptor, 65536)
        if not data:
            return found
        found += data


async def launch(spec: LaunchSpec, ability: Ability | None = None) -> tuple[str, str]:
    """Run a plugin to its end; return what it printed and how it ended."""
    launcher = SandboxLauncher(SandboxPolicy(), spec.data_dir.parent / "plugins", ability=ability)
    process = launcher.launch(spec)
    output = b""
    try:
        with trio.fail_after(30):
            await process.release(control_line(process.places, "main.py"))
            status = await process.wait()
            for descriptor in process.outputs.values():
                output += await read_all(descriptor)
        return output.decode(), process.exit_text(status)
    finally:
        process.signal(9)
        with trio.CancelScope(shield=True):
            await process.wait()
        process.close()


@pytest.fixture
def ability() -> Ability:
    found = find_ability()
    if "fs" not in found.held:
        pytest.skip(found.missing["fs"])
    return found


async def test_f19_a_planted_symlink_makes_nothing_on_the_host(
    ability: Ability, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    spec = layout(tmp_path)
    names = ("run", "wk", "tmp", "plugin", "data", "dev", "proc", "usr", "etc", "wkhost", "shm")
    for name in names:
        (spec.data_dir / name).symlink_to(f"/oldroot{victim}")
        (spec.plugin_dir / name).symlink_to(f"/oldroot{victim}")
    output, _ = await launch(spec)
    assert "NoNewPrivs:\t1" in output
    assert list(victim.iterdir()) == []


def test_f19_bites_where_a_mount_point_lies_in_a_plugins_data(
    ability: Ability, tmp_path: Path
) -> None:
    bubblewrap = ability.bubblewrap
    assert bubblewrap is not None
    if tuple(map(int, bubblewrap.version.split(".")[:2])) >= (0, 12):
        pytest.skip("this bubblewrap does not follow it")
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run").symlink_to(f"/oldroot{victim}")
    subprocess.run(
        [
            *(str(bubblewrap.path), "--unshare-all", "--bind", str(tmp_path / "data"), "/data"),
            *("--dir", "/data/run/planted", "--", "/nonexistent"),
        ],
        capture_output=True,
        check=False,
    )
    assert [path.name for path in victim.iterdir()] == ["planted"]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment whose .pth file tells when it ran; return its interpreter."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site_of(python) / "evil.pth").write_text(
        "import sys; sys.stdout.write('PTH ' + [line for line in open('/proc/self/status') "
        "if line.startswith('Seccomp:')][0].split()[1] + '\\n'); sys.stdout.flush()\n"
    )
    return python


async def test_k18_code_of_an_environment_runs_only_after_all_layers_hold(
    ability: Ability, environment: Path, tmp_path: Path
) -> None:
    output, end = await launch(layout(tmp_path), with_environment(ability, environment))
    assert "PTH 2" in output, (output, end)
    assert "PTH 0" not in output


def test_k18_bites_without_s(environment: Path) -> None:
    done = subprocess.run([environment, "-I", "-c", "pass"], capture_output=True, check=True)
    assert b"PTH 0" in done.stdout


async def test_k18_a_plugin_cannot_report_for_boot(ability: Ability, tmp_path: Path) -> None:
    """A bubblewrap that contains nothing: boot is content, the host is not."""
    assert ability.bubblewrap is not None
    fake = tmp_path / "bwrap"
    fake.write_text(
        f"#!{sys.executable} -IS\n"
        "import os, sys\n"
        "command = sys.argv[sys.argv.index('--') + 1:]\n"
        "control = int(command[-1][1:])\n"
        "while not os.read(control, 65536).endswith(b'\\n'): pass\n"
        "os.write(control, b'ready\\n')\n"
        "print('GOT', os.read(control, 65536), flush=True)\n"
    )
    fake.chmod(0o755)
    broken = msgspec.structs.replace(
        ability,
        bubblewrap=Bubblewrap(fake, "0", "0", "test"),
        held=ability.held - {"uid"},
        missing={"uid": "not wanted here"},
    )
    with pytest.raises(PluginError, match="does not hold"):
        await launch(layout(tmp_path), broken)


async def test_what_the_host_reads_is_what_is_there(ability: Ability, tmp_path: Path) -> None:
    output, _ = await launch(layout(tmp_path))
    facts = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
    assert facts["Seccomp"] == "2"
    assert facts["CapEff"] == facts["CapBnd"] == "0" * 16
    assert facts["NoNewPrivs"] == "1"
    assert (facts["Uid"].split()[0] == "0") is False or os.geteuid() != 0


async def test_nothing_inside_tells_of_the_hosts_folders(ability: Ability, tmp_path: Path) -> None:
    code = (
        "import json, os\n"
        "read = lambda path: open(path, 'rb').read().decode('latin-1')\n"
        "print(json.dumps([read('/proc/1/cmdline'), read('/proc/self/cmdline')]), flush=True)\n"
        "os._exit(0)\n"
    )
    output, _ = await launch(layout(tmp_path, code))
    shown = json.loads(output.splitlines()[-1])
    assert str(tmp_path) not in "".join(shown)
    assert "exec_at" not in "".join(shown)
