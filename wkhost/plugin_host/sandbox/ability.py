"""What this machine can do to contain a plugin, found out once per process, by doing."""

from __future__ import annotations

import os
from functools import lru_cache

import msgspec

from wkhost.errors import PluginError
from wkhost.plugin_host.manifest import SANDBOX_LAYERS
from wkhost.plugin_host.sandbox import cgroups
from wkhost.plugin_host.sandbox.bubblewrap import Bubblewrap, find_bubblewrap
from wkhost.plugin_host.sandbox.command import SETPRIV
from wkhost.plugin_host.sandbox.landlock import landlock_abi
from wkhost.plugin_host.sandbox.policy import ALWAYS
from wkhost.plugin_host.sandbox.probe import Findings, probe
from wkhost.plugin_host.sandbox.uids import FIRST_UID
from wkhost.plugin_host.sandbox.view import Interpreter, interpreter

USERNS_FIX = (
    "allow user namespaces (sysctl user.max_user_namespaces; on Ubuntu an AppArmor profile for "
    "bwrap; in a container a seccomp profile that allows unshare and mount)"
)


class Ability(msgspec.Struct, frozen=True):
    """`held` are layers of `SANDBOX_LAYERS`; `missing` says of the others why, and the fix."""

    bubblewrap: Bubblewrap | None
    python: Interpreter | None
    landlock: int
    groups: cgroups.Groups | None
    held: frozenset[str]
    missing: dict[str, str]

    @property
    def own_uid(self) -> bool:
        return "uid" in self.held


@lru_cache(maxsize=1)
def find_ability() -> Ability:
    """Look for tools and run the probe. Blocks for 0.1 to 0.3 s the first time."""
    missing: dict[str, str] = {}
    groups = None
    try:
        groups = cgroups.open_groups()
    except (PluginError, OSError) as error:
        missing.update(dict.fromkeys(("memory", "cpu"), f"no control group: {error}"))
    if groups is not None:
        for layer, controller in (("memory", "memory"), ("cpu", "cpu")):
            if controller not in groups.homes:
                missing[layer] = f"no {controller} controller; {cgroups.FIX}"
    try:
        bubblewrap, python = find_bubblewrap(), interpreter()
    except PluginError as error:
        reason = dict.fromkeys((*ALWAYS, "landlock", "uid", "processes"), str(error))
        return Ability(None, None, 0, groups, frozenset(), {**missing, **reason})
    abi = landlock_abi()
    findings = _try_uids(bubblewrap, python, abi, missing)
    for layer in ("landlock", *ALWAYS, "processes"):
        if layer not in findings.held:
            missing[layer] = findings.broken.get(layer, "not probed")
    if abi == 0:
        missing["landlock"] = "the kernel has no Landlock (5.13 or newer, enabled with lsm=)"
    if os.geteuid() == 0 and "uid" in missing and (groups is None or "pids" not in groups.homes):
        # The kernel exempts root from RLIMIT_NPROC.
        missing["processes"] = f"{missing['uid']}; no pids controller; {cgroups.FIX}"
    held = frozenset(SANDBOX_LAYERS) - set(missing)
    return Ability(bubblewrap, python, abi, groups, held, missing)


def _try_uids(
    bubblewrap: Bubblewrap, python: Interpreter, abi: int, missing: dict[str, str]
) -> Findings:
    """Probe with a uid of its own first, where the server is root; note why it has none."""
    if os.geteuid() != 0:
        missing["uid"] = "the server is not root"
    elif not SETPRIV.exists():
        missing["uid"] = f"{SETPRIV} is missing (package util-linux)"
    else:
        try:
            return probe(bubblewrap, python, landlock_abi=abi, uid=FIRST_UID)
        except (PluginError, OSError) as error:
            missing["uid"] = f"a process with a uid of its own cannot be started: {error}"
    try:
        return probe(bubblewrap, python, landlock_abi=abi, uid=None)
    except (PluginError, OSError) as error:
        reason = f"{error}; {USERNS_FIX}"
        return Findings(frozenset(), dict.fromkeys((*ALWAYS, "landlock", "processes"), reason))
