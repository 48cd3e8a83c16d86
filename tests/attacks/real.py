"""A plugin as a server has it: installed from its folder, with a package that pip installed, its
data below the server's plugins, and a way out to one listed host.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from wkhost.plugin_host.egress import EgressProxy
from wkhost.plugin_host.egress_rules import EgressRules, parse_private
from wkhost.plugin_host.generation import EGRESS_SOCKET
from wkhost.plugin_host.manifest import MANIFEST_NAME
from wkhost.plugin_host.package import Package, install_package
from wkhost.plugin_host.process import LaunchSpec, check_imports
from wkhost.plugin_host.sandbox.ability import Ability
from wkhost.plugin_host.sandbox.view import _follow

DEPENDENCY = "wk_attack_dependency"


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with a package that pip installed; return its interpreter.

    What else is installed is found in the environment of the tests.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    wheel = _write_wheel(folder)
    subprocess.run([*pip, "install", "--quiet", "--no-index", str(wheel)], check=True)
    paths = sysconfig.get_paths()
    (site_of(python) / "tests.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return python


def site_of(python: Path) -> Path:
    """Return the folder of an environment's installed packages."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    return site


def _write_wheel(folder: Path) -> Path:
    path = folder / f"{DEPENDENCY}-1.0-py3-none-any.whl"
    info = f"{DEPENDENCY}-1.0.dist-info"
    name = DEPENDENCY.replace("_", "-")
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{DEPENDENCY}.py", "INSTALLED = True\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", f"{DEPENDENCY}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def with_environment(ability: Ability, python: Path) -> Ability:
    """The machine, if wkhost ran in that environment."""
    assert ability.python is not None
    links, _ = _follow(python)
    trees = (*ability.python.trees, python.parents[1] / "lib", python.parents[1] / "pyvenv.cfg")
    changed = msgspec.structs.replace(
        ability.python,
        executable=python,
        trees=trees,
        links=(*links, *ability.python.links),
    )
    return msgspec.structs.replace(ability, python=changed)


def install(source: Path, manifest: str, plugins_dir: Path) -> Package:
    """Install a plugin from its folder, as an operator does. The same one again is kept."""
    (source / MANIFEST_NAME).write_text(manifest)
    return install_package(
        str(source), plugins_dir, lambda package: check_imports(package.manifest, package.folder)
    )


def way_out(spec: LaunchSpec, owns: Callable[[int], bool], port: int) -> EgressProxy:
    """Return the proxy of a process; of what its manifest lists, the operator opens one port."""
    opened = parse_private(f"127.0.0.1:{port}")
    return EgressProxy(
        spec.runtime_dir / EGRESS_SOCKET,
        EgressRules(spec.manifest.capabilities.egress, (opened,)),
        may_connect=owns,
        denied=lambda text: None,
    )
