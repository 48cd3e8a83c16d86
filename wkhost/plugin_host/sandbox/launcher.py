"""The launcher that contains: refuses what cannot be contained as asked, starts the rest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import structlog
import trio

from wkhost.errors import PluginError
from wkhost.link import contract
from wkhost.plugin_host.manifest import SANDBOX_LAYERS, Manifest
from wkhost.plugin_host.process import Launcher, LaunchSpec, Places, PlainLauncher, Process
from wkhost.plugin_host.sandbox.ability import Ability, find_ability
from wkhost.plugin_host.sandbox.bytecode import make_readable_bytecode
from wkhost.plugin_host.sandbox.cgroups import lent_cpu_share
from wkhost.plugin_host.sandbox.checks import Expected
from wkhost.plugin_host.sandbox.command import Sizes, sandbox_command
from wkhost.plugin_host.sandbox.orders import ENVIRONMENT, boot_orders
from wkhost.plugin_host.sandbox.policy import Mode, SandboxPolicy, minimum
from wkhost.plugin_host.sandbox.probe import BOOT_SCRIPT
from wkhost.plugin_host.sandbox.process import SandboxProcess, control_pair, start
from wkhost.plugin_host.sandbox.uids import UidTable, give_folder
from wkhost.plugin_host.sandbox.view import DATA, PLUGIN, SOCKETS, Interpreter, plugin_view
from wkhost.plugin_host.sandbox.watch import Watch, data_excess

SIZES = Sizes()
OFF_NOTE = (
    "SANDBOX OFF for this plugin (plugin.sandbox): it can read, change and reach all that the "
    "server can"
)

log = structlog.get_logger(__name__)
_numbers = count(1)


class SandboxLauncher:
    """See the module. `private` are folders that no plugin may see, besides the plugins' own.

    `ability` is what the machine can do; None finds it out.
    """

    def __init__(
        self,
        policy: SandboxPolicy,
        plugins_dir: Path,
        *,
        private: tuple[Path, ...] = (),
        ability: Ability | None = None,
    ) -> None:
        self._policy = policy
        self._plain: Launcher = PlainLauncher()
        self._uids = UidTable(plugins_dir, policy.first_uid, policy.last_uid)
        self._private = (plugins_dir, *private)
        self._watches: dict[str, Watch] = {}
        self._known = ability

    async def prepare(self) -> None:
        ability = await trio.to_thread.run_sync(self._ability)
        if ability.python is not None:
            await trio.to_thread.run_sync(make_readable_bytecode, ability.python.site)
        log.info("sandbox", held=",".join(sorted(ability.held)), bubblewrap=str(ability.bubblewrap))
        for layer, reason in ability.missing.items():
            log.info("sandbox_layer_missing", layer=layer, reason=reason)

    def layers(self, manifest: Manifest) -> dict[str, str]:
        if self._policy.mode_of(manifest.no) is Mode.OFF:
            return {"sandbox": "OFF", **self._plain.layers(manifest)}
        return _describe(self._ability(), manifest)

    def report(self, manifests: Sequence[Manifest]) -> contract.PluginSandbox:
        plugins = [self._contained(each) for each in manifests]
        return report_ability(self._ability(), plugins)

    def launch(self, spec: LaunchSpec) -> Process:
        manifest = spec.manifest
        mode = self._policy.mode_of(manifest.no)
        self._check_layers(manifest)
        if mode is Mode.OFF:
            log.warning("plugin_sandbox_off", plugin=manifest.no, generation=spec.generation)
            return self._plain.launch(spec)
        ability = self._ability()
        self._check_data(spec)
        try:
            return self._launch(spec, ability)
        except OSError as error:
            raise PluginError(f"{manifest.no}: cannot be started ({error})") from error

    # --- parts ----------------------------------------------------------------------------------

    def _ability(self) -> Ability:
        return self._known or find_ability()

    def _check_layers(self, manifest: Manifest) -> list[str]:
        """Return the layers that the plugin must have. Raises PluginError for those it lacks."""
        mode = self._policy.mode_of(manifest.no)
        wanted = minimum(mode, manifest, root=os.geteuid() == 0)
        missing = [layer for layer in wanted if layer not in self._ability().held]
        if missing:
            reasons = "; ".join(f"{layer}: {self._ability().missing[layer]}" for layer in missing)
            raise PluginError(
                f"{manifest.no}: not started, required sandbox layers are missing: {reasons}"
            )
        return list(wanted)

    def _contained(self, manifest: Manifest) -> contract.PluginContainment:
        mode = self._policy.mode_of(manifest.no)
        try:
            wanted = self._check_layers(manifest)
        except PluginError as error:
            return contract.PluginContainment(manifest.no, mode, [], {}, str(error))
        return contract.PluginContainment(manifest.no, mode, wanted, self.layers(manifest))

    def _check_data(self, spec: LaunchSpec) -> None:
        """A plugin that was ended for its data starts again only when there is room again."""
        watch = self._watches.get(spec.manifest.no)
        if watch is None or not watch.reason:
            return
        excess = data_excess(spec.data_dir, spec.manifest.limits)
        if excess:
            raise PluginError(f"{spec.manifest.no}: not started: {excess} ({spec.data_dir})")

    def _launch(self, spec: LaunchSpec, ability: Ability) -> Process:
        manifest = spec.manifest
        limits = manifest.limits
        python, bubblewrap = ability.python, ability.bubblewrap
        assert python is not None
        assert bubblewrap is not None
        own_uid = self._give(spec, ability)
        view = plugin_view(
            python,
            BOOT_SCRIPT,
            plugin_dir=spec.plugin_dir,
            data_dir=spec.data_dir,
            socket_dir=spec.runtime_dir,
            private=self._private,
        )
        orders = boot_orders(
            _run(manifest, python),
            limits,
            view,
            subprocesses=manifest.sandbox.subprocesses,
            landlock_abi=ability.landlock,
            # Only the way to its own forwarder: nothing else is in its network namespace.
            internet=bool(manifest.capabilities.egress) and "net" in ability.held,
        )
        with contextlib.ExitStack() as stack:
            group = None
            if ability.groups is not None:
                group = ability.groups.create(f"{manifest.no}.{next(_numbers)}", limits)
                stack.callback(group.remove)
            ours, theirs = control_pair()
            command = sandbox_command(
                *(bubblewrap, view, ENVIRONMENT, python.executable, theirs.fileno()),
                sizes=SIZES,
                uid=own_uid,
            )
            with contextlib.nullcontext() if group is None else lent_cpu_share(group):
                started = start(command, ours, theirs, orders)
            stack.pop_all()
        watch = Watch(limits, spec.data_dir, grouped="memory" in ability.held)
        self._watches[manifest.no] = watch
        note = "sandbox " + " ".join(f"{k}={v}" for k, v in _describe(ability, manifest).items())
        log.info("plugin_sandbox", plugin=manifest.no, generation=spec.generation, layers=note)
        return SandboxProcess(
            started,
            Places(PLUGIN, DATA, SOCKETS),
            Expected(os.geteuid() if own_uid is None else own_uid),
            group=group,
            watch=watch,
            note=note,
            own_uid=own_uid,
            socket_dir=spec.runtime_dir,
            alone=not manifest.sandbox.subprocesses,
        )

    def _give(self, spec: LaunchSpec, ability: Ability) -> int | None:
        """Give the plugin's folders to its uid; return that, or None where it has none."""
        if os.geteuid() != 0:
            return None
        own_uid = self._uids.uid_of(spec.manifest.no) if ability.own_uid else None
        give_folder(spec.data_dir, own_uid or 0)
        os.chown(spec.runtime_dir, own_uid or 0, own_uid or 0)
        return own_uid


def _run(manifest: Manifest, python: Interpreter) -> dict[str, Any]:
    if manifest.main:
        path = str(python.sdk.parent)
        return {"module": "plugin_sdk", "path": path, "args": ["--control-fd", "3"]}
    return {"command": list(manifest.command)}


def report_ability(
    ability: Ability, plugins: Sequence[contract.PluginContainment] = ()
) -> contract.PluginSandbox:
    """Put what the machine can do into the words of the link."""
    held = [layer for layer in SANDBOX_LAYERS if layer in ability.held]
    missing = {layer: ability.missing[layer] for layer in SANDBOX_LAYERS if layer not in held}
    return contract.PluginSandbox(str(ability.bubblewrap or "none"), held, missing, list(plugins))


def _describe(ability: Ability, manifest: Manifest) -> dict[str, str]:
    """Return what contains a plugin here, in the words of its start line."""
    limits, held = manifest.limits, ability.held
    profile = "subprocesses" if manifest.sandbox.subprocesses else "single-process"
    pids = ability.groups is not None and "pids" in ability.groups.homes
    found = {
        "fs": "bwrap" + (f"+landlock{ability.landlock}" if "landlock" in held else ""),
        "net": "netns",
        "pid": "ns",
        "syscalls": f"seccomp({profile})",
        "uid": "own" if "uid" in held else "the-server's",
        "mem": f"{'cgroup' if 'memory' in held else 'rlimit+watch'}{limits.memory_mb}M",
        "cpu": f"cgroup{limits.cpu_percent}%" if "cpu" in held else "watch",
        "procs": f"{'cgroup' if pids else 'rlimit'}{limits.processes}",
        "files": f"rlimit{limits.open_files}",
        "quota": f"tmpfs{SIZES.scratch_mb}M,data-soft{limits.data_mb}M",
    }
    for layer in SANDBOX_LAYERS:
        if layer in found and layer in ability.missing and layer not in ("uid", "cpu"):
            found[layer] = "NONE"
    return found
