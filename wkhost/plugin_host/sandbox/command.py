"""The command lines of bubblewrap. What it is to do goes through descriptors, not through argv:
argv of the sandbox's first process can be read inside, and would tell of the host's folders.

Without a uid of its own a plugin is started in one stage. With one, as root, setpriv gives up root
for the uid first; so the namespaces of the plugin belong to that uid and not to root. Where the uid
could not reach all that is mounted (folders below a closed home), a stage before that makes it
reachable at a place in its own mount namespace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from wkhost.plugin_host.sandbox.bubblewrap import Bubblewrap
from wkhost.plugin_host.sandbox.reach import out_of_reach
from wkhost.plugin_host.sandbox.view import BOOT, DATA, Mount, View

SETPRIV = Path("/usr/bin/setpriv")
_STAGE = Path("/tmp/wkhost-stage")
"""Lies in a private tmpfs of the first stage; nothing of the host's /tmp is touched."""
_MIB = 1024 * 1024


class Sizes(msgspec.Struct, frozen=True):
    """Room in memory: `scratch_mb` for /tmp, `shared_mb` for /dev/shm."""

    scratch_mb: int = 64
    shared_mb: int = 16


class Command(msgspec.Struct, frozen=True):
    """`argv` to start; `descriptors` are to be inherited, and closed by the caller."""

    argv: tuple[str, ...]
    descriptors: tuple[int, ...]


def sandbox_command(
    bubblewrap: Bubblewrap,
    view: View,
    environment: Mapping[str, str],
    python: Path,
    control_fd: int,
    *,
    sizes: Sizes,
    uid: int | None,
    staged: bool | None = None,
) -> Command:
    """Return how to start boot in the sandbox; `uid` None keeps the server's own.

    `staged` None finds out whether the uid needs a stage. Raises OSError.
    """
    boot = [str(python), "-I", "-S", str(BOOT), f"@{control_fd}"]
    if uid is None:
        inner = _descriptor(_inner(view, environment, sizes))
        return Command((str(bubblewrap.path), "--args", str(inner), "--", *boot), (inner,))
    give_up_root = (
        *(str(SETPRIV), f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", "--bounding-set=-all", "--"),
    )
    if staged is None:
        staged = needs_stage(bubblewrap, view, uid)
    if not staged:
        inner = _descriptor(_inner(view, environment, sizes))
        program = bubblewrap.path
        argv = (*give_up_root, str(program), "--args", str(inner), "--", *boot)
        return Command(argv, (inner,))
    view, binds, program = _stage(bubblewrap, view)
    inner = _descriptor(_inner(view, environment, sizes))
    outer = _descriptor(_outer(binds))
    argv = (
        *(str(bubblewrap.path), "--args", str(outer), "--", *give_up_root),
        *(str(program), "--args", str(inner), "--", *boot),
    )
    return Command(argv, (inner, outer))


def needs_stage(bubblewrap: Bubblewrap, view: View, uid: int) -> bool:
    """Whether something that `uid` is to start or to mount is closed to it. Raises OSError."""
    tools = [bubblewrap.path, *([bubblewrap.libraries] if bubblewrap.libraries else ())]
    return out_of_reach([*tools, *(mount.source for mount in view.mounts)], uid) is not None


def _inner(view: View, environment: Mapping[str, str], sizes: Sizes) -> list[str]:
    words = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    words += ["--new-session", "--hostname", "plugin", "--clearenv"]
    for name, value in environment.items():
        words += ["--setenv", name, value]
    for parent in view.parents():
        words += ["--perms", "0755", "--dir", str(parent)]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--perms", "1777", "--size", str(sizes.shared_mb * _MIB), "--tmpfs", "/dev/shm"]
    words += ["--remount-ro", "/dev"]
    words += ["--perms", "1777", "--size", str(sizes.scratch_mb * _MIB), "--tmpfs", "/tmp"]
    for target, place in view.links:
        words += ["--symlink", target, str(place)]
    for mount in view.mounts:
        words += _bind(mount)
    # Last: what is still open at the root is not to be a scratch space without a limit.
    return [*words, "--remount-ro", "/", "--cap-drop", "ALL", "--chdir", str(DATA)]


def _bind(mount: Mount) -> list[str]:
    return ["--bind" if mount.writable else "--ro-bind", str(mount.source), str(mount.target)]


def _stage(bubblewrap: Bubblewrap, view: View) -> tuple[View, list[Mount], Path]:
    """Return the view from the stage, the mounts that make it, and bubblewrap's path there."""
    binds: list[Mount] = []
    staged: list[Mount] = []
    for number, mount in enumerate(view.mounts):
        place = _STAGE / str(number)
        binds.append(Mount(mount.source, place, mount.writable))
        staged.append(msgspec.structs.replace(mount, source=place))
    tools = _STAGE / "tools"
    if bubblewrap.libraries is None:
        program = tools / "bwrap"
        binds.append(Mount(bubblewrap.path, program))
    else:
        # Its libraries are found by a name relative to its own folder's parent.
        program = tools / "a" / "b" / "bwrap"
        binds.append(Mount(bubblewrap.path, program))
        binds.append(Mount(bubblewrap.libraries, tools / bubblewrap.libraries.name))
    return View(tuple(staged), view.links, view.executable), binds, program


def _outer(binds: Sequence[Mount]) -> list[str]:
    # The end of a parent may not signal a process of another uid, but the end of a pid namespace
    # kills whatever is in it, whosever it is.
    words = ["--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"]
    words += ["--dev-bind", "/", "/", "--tmpfs", "/tmp"]
    parents = {parent for bind in binds for parent in bind.target.parents}
    for parent in sorted(parents - {Path("/"), Path("/tmp")}):
        words += ["--perms", "0755", "--dir", str(parent)]
    for bind in binds:
        words += _bind(bind)
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
        words += ["--cap-add", capability]
    return [*words, "--chdir", "/"]


def _descriptor(words: Sequence[str]) -> int:
    """Put words where bubblewrap's --args reads them."""
    descriptor = os.memfd_create("wkhost-sandbox", os.MFD_CLOEXEC)
    os.write(descriptor, b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
