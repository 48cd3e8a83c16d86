"""`python -m tests.attacks.as_user COMMAND...`: as root, run a command as an ordinary user.

Interpreter and sources may lie in folders that are closed to others. In a mount namespace of its
own, such a folder is replaced by one that holds only what is needed. No new privileges are *not*
switched off, so that setuid programs work as they would for any user.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

USER = 60_123
"""No such user need exist."""
ROOT = Path(__file__).parents[2]


def why_not() -> str:
    """Return why commands cannot be run as a user here, "" where they can."""
    if os.geteuid() != 0:
        return "not root: the tests run as an ordinary user anyway"
    if not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return "util-linux is missing"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no mount namespace can be made here"


def user_command(command: Sequence[str], scratch: Path, environment: dict[str, str]) -> list[str]:
    """Return the command line; `scratch` becomes the user's and is its TMPDIR."""
    os.chown(scratch, USER, USER)
    scratch.chmod(0o755)
    trees = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    lines = ["set -e"]
    moved: list[tuple[str, Path]] = []
    closed: list[Path] = []
    stage = tempfile.mkdtemp(prefix="wkhost-stage-")
    for number, tree in enumerate(trees):
        barrier = _barrier(tree)
        if barrier is not None:
            place = f"{stage}/{number}"
            lines += [f"mkdir -p {place}", f"mount --bind {shlex.quote(str(tree))} {place}"]
            moved.append((place, tree))
            closed.append(barrier)
    for barrier in dict.fromkeys(closed):
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(barrier))}")
    for place, tree in moved:
        quoted = shlex.quote(str(tree))
        lines += [f"mkdir -p {quoted}", f"mount --move {place} {quoted}"]
    settings = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    user = f"setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all"
    words = ["env", "-i", *(f"{name}={value}" for name, value in settings.items()), *command]
    lines += ["umask 022", f"cd {shlex.quote(str(ROOT))}", f"exec {user} {shlex.join(words)}"]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]


def _barrier(path: Path) -> Path | None:
    """Return the outermost folder on the way that others may not enter."""
    for each in (*reversed(path.parents), path):
        if not each.stat().st_mode & 0o001:
            return each
    return None


def setuid_id(folder: Path) -> Path:
    """Make a setuid copy of `id` in an open folder."""
    copy = folder / "id"
    shutil.copyfile(shutil.which("id") or "/usr/bin/id", copy)
    os.chown(copy, 0, 0)
    copy.chmod(0o4755)
    return copy


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="wkhost-user-") as name:
        command = user_command(sys.argv[1:], Path(name), {})
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
