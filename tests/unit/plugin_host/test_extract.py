"""The extractor: whatever a package holds, nothing lands outside and nothing odd lands inside."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wkhost.errors import PluginError
from wkhost.plugin_host import extract
from wkhost.plugin_host.extract import checked_name, stage_package

Members = list[tuple[str, bytes]]


def tar(path: Path, members: Members, change: Callable[[tarfile.TarInfo], None] = id) -> Path:  # type: ignore[assignment]
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, members: Members, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def staged(source: Path, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "staging"
    folder.mkdir()
    stage_package(source, folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


GOOD: Members = [("plugin.toml", b"x"), ("pkg/a.py", b"1"), ("pkg/sub/b.py", b"2")]


@pytest.mark.parametrize("make", [tar, zipped])
def test_an_honest_archive_comes_out_as_it_is(
    make: Callable[[Path, Members], Path], tmp_path: Path
) -> None:
    assert staged(make(tmp_path / "a", GOOD), tmp_path) == dict(GOOD)


def test_an_honest_folder_comes_out_without_byte_code(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "pkg" / "__pycache__").mkdir(parents=True)
    (source / "pkg" / "__pycache__" / "a.pyc").write_bytes(b"old")
    (source / "pkg" / "a.py").write_bytes(b"1")
    (source / "run.sh").write_bytes(b"2")
    (source / "run.sh").chmod(0o755)
    assert staged(source, tmp_path) == {"pkg/a.py": b"1", "run.sh": b"2"}
    assert (tmp_path / "staging" / "run.sh").stat().st_mode & 0o100


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize(
    "name",
    [
        "/etc/x",
        "../x",
        "a/../../x",
        "a\\b",
        "a\nb",
        "a/./b",
        "a//b",
        "e\u0301.py",
        "a\u202eb",
        "x" * 600,
    ],
)
def test_bad_names_are_refused(
    make: Callable[[Path, Members], Path], name: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "a", [("ok", b""), (name, b"x")])
    with pytest.raises(PluginError):
        staged(source, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "staging"]


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("pair", [("a.py", "A.py"), ("a", "a/b"), ("d/x", "D/y"), ("s", "s")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_colliding_names_are_refused(
    make: Callable[[Path, Members], Path], pair: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(PluginError):
        staged(make(tmp_path / "a", [(name, b"x") for name in pair]), tmp_path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    with pytest.raises(PluginError, match="only files and folders"):
        staged(tar(tmp_path / "a", [("x", b"")], change), tmp_path)


def test_setuid_bits_are_refused(tmp_path: Path) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.mode = 0o4755

    with pytest.raises(PluginError, match="setuid"):
        staged(tar(tmp_path / "a", [("x", b"1")], change), tmp_path)
    source = zipped(tmp_path / "b", [("x", b"1")], stat.S_IFREG | 0o2755)
    (tmp_path / "staging").rmdir()
    with pytest.raises(PluginError, match="setuid"):
        staged(source, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="only files and folders"):
        staged(zipped(tmp_path / "a", [("x", b"/etc/passwd")], stat.S_IFLNK | 0o777), tmp_path)


@pytest.mark.parametrize("make", [tar, zipped])
def test_too_many_entries_are_refused(
    make: Callable[[Path, Members], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "MAX_ENTRIES", 10)
    with pytest.raises(PluginError, match="more than 10 entries"):
        staged(make(tmp_path / "a", [(f"f{i}", b"") for i in range(11)]), tmp_path)


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_bomb_stops_at_the_ratio(make: Callable[[Path, Members], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "a", [("zeros", bytes(20 * 1024 * 1024))])
    with pytest.raises(PluginError, match="100 times"):
        staged(source, tmp_path)
    left = sum(path.stat().st_size for path in (tmp_path / "staging").rglob("*"))
    assert left <= max(100 * source.stat().st_size, 1024 * 1024)


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "MAX_UNPACKED_BYTES", 1000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(1001))
    with pytest.raises(PluginError, match="more than 1000 bytes"):
        staged(source, tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "plugin.toml", "."])
def test_links_in_a_folder_are_not_followed(target: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "plugin.toml").write_bytes(b"x")
    (source / "link").symlink_to(target)
    with pytest.raises(PluginError, match="link"):
        staged(source, tmp_path)


def test_a_fifo_in_a_folder_does_not_block(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    with pytest.raises(PluginError, match="plain files"):
        staged(source, tmp_path)


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_damaged_archive_is_a_plugin_error(cut: int, tmp_path: Path) -> None:
    data = tar(tmp_path / "a", [("x", os.urandom(1000))]).read_bytes()
    for number, damaged in enumerate((data[:-cut], data[:200] + b"\0\1" * cut + data[200:])):
        source = tmp_path / f"d{number}"
        source.write_bytes(damaged)
        (tmp_path / f"s{number}").mkdir()
        with pytest.raises(PluginError):
            stage_package(source, tmp_path / f"s{number}")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b", b"PK\x03\x04rest", gzip.compress(b"no tar")]
)
def test_anything_else_is_a_plugin_error(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(content)
    with pytest.raises(PluginError):
        staged(source, tmp_path)


@given(st.text(max_size=30))
def test_an_accepted_name_stays_inside(name: str) -> None:
    try:
        accepted = checked_name(name)
    except PluginError:
        return
    root = "/root/of/it"
    path = os.path.normpath(os.path.join(root, accepted))
    assert path == f"{root}/{name}"
    assert path.startswith(root + "/")


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
@given(
    members=st.lists(
        st.tuples(
            st.text(st.sampled_from("aA./\\é\u0301\n~ "), min_size=1, max_size=6),
            st.binary(max_size=8),
        ),
        max_size=5,
    ),
    as_tar=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_whatever_the_names_nothing_lands_outside(
    members: Members, as_tar: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("names")
    source = (tar if as_tar else zipped)(folder / "archive", members)
    (folder / "staging").mkdir()
    with contextlib.suppress(PluginError):
        stage_package(source, folder / "staging")
    assert sorted(path.name for path in folder.iterdir()) == ["archive", "staging"]
    for path in (folder / "staging").rglob("*"):
        assert not path.is_symlink()
