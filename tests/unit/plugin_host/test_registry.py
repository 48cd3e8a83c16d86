"""The registry and the catalog: usable while no server runs, durable, safe side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wkhost.errors import PluginError
from wkhost.link.contract import InstallPlugin
from wkhost.plugin_host.catalog import Catalog
from wkhost.plugin_host.registry import Entry, Registry

MANIFEST = '[plugin]\nno = "{no}"\nversion = "{version}"\n{extra}\n[run]\nmain = "main.py"\n'


def entry(no: str) -> Entry:
    return Entry(no=no, version="1", digest="d", folder=f"{no}/1-d", source="s")


def source(folder: Path, no: str = "a", version: str = "1", extra: str = "", code: str = "") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "plugin.toml").write_text(MANIFEST.format(no=no, version=version, extra=extra))
    (folder / "main.py").write_text(code or "import json\n")
    return str(folder)


def install(catalog: Catalog, path: str, *, enable: bool, **fields: Any) -> Entry:
    """Install a package and agree to all that it asks for."""
    digest = catalog.propose(path).digest
    return catalog.install(InstallPlugin(path, enable, digest=digest, **fields))


def test_what_is_put_is_there_after_a_restart(tmp_path: Path) -> None:
    Registry(tmp_path / "plugins").put(entry("a"))
    Registry(tmp_path / "plugins").change("a", enabled=True, config={"x": [1]})
    found = Registry(tmp_path / "plugins").get("a")
    assert found.enabled
    assert found.config == {"x": [1]}


def test_a_damaged_or_newer_file_is_named(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for content in ("{", '{"format": 2, "plugins": {}}', "[]"):
        (tmp_path / "registry.json").write_text(content)
        with pytest.raises(PluginError, match=r"registry\.json"):
            registry.entries()


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wkhost.plugin_host.registry import *\n"
        "r = Registry(Path(sys.argv[1]))\n"
        "for i in range(10): r.put(Entry(no=f'{sys.argv[2]}{i}', version='1', digest='', "
        "folder='', source=''))\n"
    )
    root = Path(__file__).parents[3]
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=root)
        for name in ("a", "b")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(Registry(tmp_path).entries()) == 20


def test_install_enable_disable_uninstall_without_a_server(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    installed = install(catalog, source(tmp_path / "a"), enable=False)
    assert not installed.enabled
    assert (tmp_path / "plugins" / installed.folder / "main.py").is_file()
    assert list((tmp_path / "plugins" / installed.folder / "__pycache__").iterdir())
    assert catalog.enable("a").enabled
    assert not catalog.disable("a").enabled
    catalog.uninstall("a")
    assert catalog.registry.entries() == {}
    assert not (tmp_path / "plugins" / "a").exists()
    for action in (catalog.enable, catalog.disable, catalog.uninstall):
        with pytest.raises(PluginError, match="a: not installed"):
            action("a")


def test_another_version_stands_beside_and_keeps_config_and_state(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    first = install(catalog, source(tmp_path / "a"), enable=True)
    catalog.registry.change("a", config={"x": 1}, generation=7)
    second = install(catalog, source(tmp_path / "a", version="2"), enable=False)
    assert second.enabled
    assert (second.config, second.generation) == ({"x": 1}, 7)
    assert (tmp_path / "plugins" / first.folder).is_dir()
    assert first.folder != second.folder


def test_the_same_bytes_are_the_same_version(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    first = install(catalog, source(tmp_path / "a"), enable=False)
    again = install(catalog, source(tmp_path / "a"), enable=False)
    assert first.folder == again.folder
    other = install(catalog, source(tmp_path / "a", code="import re\n"), enable=False)
    assert other.digest != first.digest


def test_a_missing_import_is_an_error_at_install(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    folder = Path(source(tmp_path / "a", code="import json\nfrom helper import x\n"))
    (folder / "helper.py").write_text("import os, not_there_at_all\n")
    with pytest.raises(PluginError, match=r"helper\.py:1: no module named 'not_there_at_all'"):
        install(catalog, str(folder), enable=True)
    assert catalog.registry.entries() == {}
    assert [path.name for path in (tmp_path / "plugins").iterdir()] == []


def test_install_runs_nothing_of_the_package(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n"
    install(Catalog(tmp_path / "plugins"), source(tmp_path / "a", code=code), enable=True)
    assert not mark.exists()


@pytest.mark.parametrize("missing", ["plugin.toml", "main.py"])
def test_a_package_without_its_parts_is_refused(missing: str, tmp_path: Path) -> None:
    folder = Path(source(tmp_path / "a"))
    (folder / missing).unlink()
    with pytest.raises(PluginError, match=missing):
        install(Catalog(tmp_path / "plugins"), str(folder), enable=True)


def test_a_cycle_is_refused_at_install_and_at_enable(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    install(catalog, source(tmp_path / "a", extra='before = ["b"]'), enable=True)
    with pytest.raises(PluginError, match="cycle a before b before a"):
        install(catalog, source(tmp_path / "b", "b", extra='before = ["a"]'), enable=True)
    catalog.disable("a")
    install(catalog, source(tmp_path / "b", "b", extra='before = ["a"]'), enable=True)
    with pytest.raises(PluginError, match="cycle"):
        catalog.enable("a")


def test_changed_files_are_not_enabled(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "plugins")
    installed = install(catalog, source(tmp_path / "a"), enable=False)
    (tmp_path / "plugins" / installed.folder / "main.py").write_text("evil = 1\n")
    with pytest.raises(PluginError, match="have changed since the install"):
        catalog.enable("a")


def test_an_unknown_source_names_the_built_ins(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"built-in plugin \(.*moderation"):
        install(Catalog(tmp_path / "plugins"), "no-such-thing", enable=True)
