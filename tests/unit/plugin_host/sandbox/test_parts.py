"""The parts that decide what is asked, who a plugin is and what may be trusted."""

from __future__ import annotations

import os
import py_compile
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import SANDBOX_LAYERS, Limits, Manifest, parse_manifest
from wkhost.plugin_host.process import LaunchSpec
from wkhost.plugin_host.sandbox import bubblewrap, cgroups
from wkhost.plugin_host.sandbox.ability import Ability
from wkhost.plugin_host.sandbox.bytecode import make_readable_bytecode
from wkhost.plugin_host.sandbox.checks import Expected, check_process
from wkhost.plugin_host.sandbox.folders import MAX_DEPTH, walk
from wkhost.plugin_host.sandbox.landlock import landlock_rules
from wkhost.plugin_host.sandbox.launcher import SandboxLauncher
from wkhost.plugin_host.sandbox.policy import ALWAYS, Mode, SandboxPolicy, minimum
from wkhost.plugin_host.sandbox.reach import out_of_reach
from wkhost.plugin_host.sandbox.uids import UidTable, give_folder
from wkhost.plugin_host.sandbox.view import interpreter, plugin_view
from wkhost.plugin_host.sandbox.watch import data_excess


def manifest(sandbox: str = "") -> Manifest:
    return parse_manifest(
        f'[plugin]\nno = "p"\nversion = "1"\n[run]\nmain = "m.py"\n[sandbox]\n{sandbox}'.encode()
    )


# --- what is asked ------------------------------------------------------------------------------


def test_the_minimum_is_the_stronger_of_operator_and_manifest() -> None:
    asks = manifest('require = ["memory"]')
    assert minimum(Mode.AUTO, manifest(), root=True) == ALWAYS
    assert set(minimum(Mode.AUTO, asks, root=True)) == {*ALWAYS, "memory"}
    assert set(minimum(Mode.STRICT, manifest(), root=True)) == set(SANDBOX_LAYERS)
    assert set(minimum(Mode.STRICT, manifest(), root=False)) == set(SANDBOX_LAYERS) - {"uid"}
    assert minimum(Mode.OFF, manifest(), root=True) == ()
    with pytest.raises(PluginError, match=r"p: its manifest requires .*memory.* is off"):
        minimum(Mode.OFF, asks, root=True)


def test_a_manifest_can_require_known_layers_only() -> None:
    with pytest.raises(PluginError, match=r"sandbox\.require.*one of fs, net"):
        manifest('require = ["fsx"]')


@pytest.mark.parametrize("layer", ALWAYS)
def test_nothing_starts_without_one_of_the_four_layers(layer: str, tmp_path: Path) -> None:
    held = frozenset(SANDBOX_LAYERS) - {layer}
    ability = Ability(None, None, 0, None, held, {layer: "EPERM (errno 1); mend it"})
    launcher = SandboxLauncher(SandboxPolicy(), tmp_path, ability=ability)
    spec = LaunchSpec(manifest(), 1, tmp_path, tmp_path, tmp_path)
    with pytest.raises(PluginError, match=rf"p: not started.*{layer}: EPERM \(errno 1\); mend it"):
        launcher.launch(spec)
    report = launcher.report([manifest()])
    assert report.missing == {layer: "EPERM (errno 1); mend it"}
    assert "not started" in report.plugins[0].refusal


def test_single_plugins_have_modes_of_their_own() -> None:
    policy = SandboxPolicy(Mode.STRICT, {"p": Mode.OFF})
    assert policy.mode_of("p") is Mode.OFF
    assert policy.mode_of("q") is Mode.STRICT


# --- bubblewrap ---------------------------------------------------------------------------------


def script(path: Path, mode: int = 0o755) -> Path:
    path.write_text("#!/bin/sh\necho bubblewrap 0.99\n")
    path.chmod(mode)
    return path


def test_bubblewrap_is_never_taken_from_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(script(tmp_path / "bwrap").parent))
    assert bubblewrap.find_bubblewrap().path.parent != tmp_path


@pytest.mark.parametrize(
    ("mode", "folder_mode", "reason"),
    [
        (0o4755, 0o755, "is setuid"),
        (0o644, 0o755, "is not executable"),
        (0o757, 0o755, "written by everybody"),
        (0o755, 0o757, "written by everybody"),
    ],
)
def test_what_others_could_change_is_not_run(
    mode: int, folder_mode: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    path = script(folder / "bwrap", mode)
    folder.chmod(folder_mode)
    monkeypatch.setattr(bubblewrap, "SYSTEM_PATHS", (path,))
    monkeypatch.setattr(bubblewrap, "WHEEL_FILES", {})
    with pytest.raises(PluginError, match=reason):
        bubblewrap.find_bubblewrap()
    folder.chmod(0o755)
    path.chmod(0o755)
    assert bubblewrap.find_bubblewrap().version == "0.99"


def test_a_changed_file_of_the_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {
        machine: dict.fromkeys(files, "0" * 64) for machine, files in bubblewrap.WHEEL_FILES.items()
    }
    monkeypatch.setattr(bubblewrap, "SYSTEM_PATHS", ())
    monkeypatch.setattr(bubblewrap, "WHEEL_FILES", changed)
    with pytest.raises(PluginError, match="expected SHA-256 0000"):
        bubblewrap.find_bubblewrap()


# --- the view -----------------------------------------------------------------------------------


def test_no_mount_lies_below_a_tree_of_the_plugin(tmp_path: Path) -> None:
    places = dict.fromkeys(("plugin_dir", "data_dir", "socket_dir"), tmp_path)
    view = plugin_view(interpreter(), Path(__file__), private=(tmp_path,), **places)
    targets = [mount.target for mount in view.mounts]
    hostile = [Path("/plugin"), Path("/data")]
    assert [path for path in targets for tree in hostile if tree in path.parents] == []
    assert targets[-1] == Path("/data")
    assert [mount.target for mount in view.mounts if mount.writable] == [Path("/data")]


def test_folders_of_the_server_are_never_shown(tmp_path: Path) -> None:
    python = interpreter()
    secret = python.site[0] / "wkhost-data"
    places = dict.fromkeys(("plugin_dir", "data_dir", "socket_dir"), tmp_path)
    with pytest.raises(PluginError, match=r"wkhost-data lies in .* which plugins read"):
        plugin_view(python, Path(__file__), private=(secret,), **places)


def test_landlock_asks_only_for_what_the_kernel_knows() -> None:
    known = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 7: 16}
    for abi, bits in known.items():
        rules = landlock_rules(abi, writable=("/data",), devices=("/dev/null",), executable=())
        assert rules is not None
        assert rules["files"] == (1 << bits) - 1
        assert all(access < 1 << bits for _, access in rules["rules"])
        assert bool(rules["network"]) == (abi >= 4)
        assert bool(rules["scope"]) == (abi >= 6)
    assert landlock_rules(0, writable=(), devices=(), executable=()) is None


# --- uids and folders ---------------------------------------------------------------------------


def test_a_uid_is_not_given_away_while_its_first_owners_files_exist(tmp_path: Path) -> None:
    table = UidTable(tmp_path, 5000, 5001)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert (table.uid_of("a"), table.uid_of("b"), table.uid_of("a")) == (5000, 5001, 5000)
    with pytest.raises(PluginError, match="all 2 uids are taken"):
        table.uid_of("c")
    shutil.rmtree(tmp_path / "a")
    assert UidTable(tmp_path, 5000, 5001).uid_of("c") == 5000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_giving_a_folder_follows_no_symlink(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "link").symlink_to(outside)
    (folder / "link").symlink_to(tmp_path)
    give_folder(folder, 5000)
    assert outside.stat().st_uid == tmp_path.stat().st_uid == 0
    assert {path.lstat().st_uid for path in [folder, *folder.rglob("*")]} == {5000}


def test_a_folder_without_end_is_an_error_and_no_recursion(tmp_path: Path) -> None:
    depth = MAX_DEPTH + 5
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PluginError, match="nested deeper"):
        list(walk(tmp_path))
    assert "nested deeper" in data_excess(tmp_path, Limits())
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_size_of_a_data_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file").write_bytes(bytes(3 * 1024 * 1024))
    assert data_excess(tmp_path, Limits(data_mb=4)) == ""
    assert "more than 2 MiB" in data_excess(tmp_path, Limits(data_mb=2))
    assert "more than 1 files" in data_excess(tmp_path, Limits(data_files=1))


# --- control groups, on folders that look like them ---------------------------------------------


def test_version_2_is_used_where_it_is_delegated(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/system.slice/wkhost.service\n")
    (tmp_path / "cgroup.controllers").write_text("")
    service = tmp_path / "system.slice" / "wkhost.service"
    service.mkdir(parents=True)
    (service / "cgroup.controllers").write_text("cpu memory pids io")
    (service / "cgroup.procs").write_text(f"{os.getpid()}\n")
    groups = cgroups.open_groups(tmp_path, own)
    assert (groups.version, set(groups.homes)) == (2, {"memory", "pids", "cpu"})
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = groups.create("p.1", Limits(memory_mb=100, processes=7, cpu_percent=50))
    folder = group.folders["memory"]
    assert folder.parent == service, "beside the server: see the module"
    assert (folder / "memory.max").read_text() == str(100 * 1024 * 1024)
    assert (folder / "pids.max").read_text() == "7"
    quota, period = map(int, (folder / "cpu.max").read_text().split())
    assert quota == pytest.approx(0.5 * cgroups.QUOTA_SLACK * period)
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.out_of_memory_kills() == 2


def test_groups_of_servers_that_are_gone_are_removed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/a\n")
    home = tmp_path / "memory" / "a"
    stale, alive = home / f"wkhost-{2**22 + 1}.p.1", home / f"wkhost-{os.getppid()}.p.1"
    for folder in (stale, alive):
        folder.mkdir(parents=True)
    groups = cgroups.open_groups(tmp_path, own)
    assert (groups.version, groups.homes) == (1, {"memory": home})
    assert list(home.iterdir()) == [alive]


def test_why_there_is_no_control_group_is_told(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    with pytest.raises(PluginError, match="no control groups are mounted"):
        cgroups.open_groups(tmp_path, own)
    (tmp_path / "cgroup.controllers").write_text("io\n")
    with pytest.raises(PluginError, match=r"none of memory, pids, cpu is delegated; delegate"):
        cgroups.open_groups(tmp_path, own)


# --- what the host reads ------------------------------------------------------------------------


def test_a_process_without_a_sandbox_is_found_out() -> None:
    with pytest.raises(PluginError, match="does not hold: NoNewPrivs"):
        check_process(os.getpid(), Expected(os.geteuid()))
    with pytest.raises(PluginError, match="cannot be looked at"):
        check_process(2**22 + 1, Expected(0))


def test_limits_and_sandbox_are_read_from_the_manifest() -> None:
    read = manifest('require = ["cpu", "uid"]\nsubprocesses = true')
    assert read.sandbox.require == ("cpu", "uid")
    assert read.sandbox.subprocesses
    assert msgspec.structs.asdict(Limits())["data_files"] == 10_000


def test_byte_code_is_made_and_is_as_readable_as_its_source(tmp_path: Path) -> None:
    module, secret = tmp_path / "module.py", tmp_path / "secret.py"
    for path, mode in ((module, 0o644), (secret, 0o600)):
        path.write_text("VALUE = 1\n")
        path.chmod(mode)
    cache = tmp_path / "__pycache__"
    cache.mkdir(mode=0o700)
    compiled = Path(py_compile.compile(str(module), doraise=True) or "")
    compiled.chmod(0o600)  # as a process with boot's umask leaves it
    make_readable_bytecode([tmp_path])
    modes = {path.name.split(".")[0]: path.stat().st_mode & 0o777 for path in cache.iterdir()}
    assert modes["module"] & 0o444 == 0o444
    assert modes["secret"] & 0o077 == 0
    assert cache.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o555 | 0o700
    compiled.unlink()
    make_readable_bytecode([tmp_path])
    assert compiled.stat().st_mode & 0o444 == 0o444


def test_what_a_uid_cannot_reach_is_named(tmp_path: Path) -> None:
    # Folders above this one may be closed; they are not what is looked at here.
    uid = os.geteuid() + 12345
    with tempfile.TemporaryDirectory(prefix="wkhost-reach-") as name:
        top = Path(name)
        top.chmod(0o711)
        for path, mode in (("open", 0o755), ("closed", 0o700), ("closed/inner", 0o755)):
            (top / path).mkdir()
            (top / path).chmod(mode)
        (top / "open" / "file").write_text("")
        (top / "open" / "file").chmod(0o604)
        (top / "open" / "secret").write_text("")
        (top / "open" / "secret").chmod(0o640)
        (top / "open" / "link").symlink_to("../closed/inner")
        assert out_of_reach([top / "open", top / "open" / "file"], uid) is None
        assert out_of_reach([top / "open", top / "closed" / "inner"], uid) == top / "closed"
        assert out_of_reach([top / "open" / "link"], uid) == top / "closed"
        assert out_of_reach([top / "open" / "secret"], uid) == top / "open" / "secret"
        assert out_of_reach([top], uid) == top, "a folder is to be read, not only passed"
        assert out_of_reach([top / "closed" / "inner"], os.geteuid()) is None
        with pytest.raises(FileNotFoundError):
            out_of_reach([top / "none"], uid)


def test_a_stop_from_the_terminal_does_not_reach_bubblewraps_own_look(tmp_path: Path) -> None:
    """Ctrl-C goes to the terminal's whole process group."""
    told = tmp_path / "group"
    way = script(tmp_path / "bwrap")
    way.write_text(f"#!/bin/sh\ncut -d' ' -f5 /proc/$$/stat > {told}\necho bubblewrap 1.2\n")
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid not in (0, os.geteuid()):
            pytest.skip(f"{each} belongs to somebody else")
    assert bubblewrap._vet(way, "test").version == "1.2"
    assert int(told.read_text()) != os.getpgrp()
