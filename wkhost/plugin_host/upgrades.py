"""Another version of a plugin takes over, or gives way again: with its values, settings and places.

Theory of operation. The new version gets a space of its own in the key-value store: the values are
copied while the old one works, its process starts beside the old one and passes its self-test, the
observers come to rest, and then, in one stretch, the last values are copied and the calls go to the
new process. From there on the old one may finish its calls but not write values. Only then the
registry says so; a server that dies before comes back with the old version and its own space. What
was left is kept as a snapshot, so that going back is a switch like any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
import structlog
import trio

from wkhost.errors import PluginError
from wkhost.plugin_host import releases
from wkhost.plugin_host.capability import narrow
from wkhost.plugin_host.catalog import Catalog, Staged
from wkhost.plugin_host.config_schema import merge_config
from wkhost.plugin_host.consent import Consent, consent
from wkhost.plugin_host.host_api import HostApi
from wkhost.plugin_host.observation import Observation
from wkhost.plugin_host.observers import cursor_name
from wkhost.plugin_host.package import Package
from wkhost.plugin_host.plan import Plan, Switch
from wkhost.plugin_host.registry import Entry, Release, Snapshot
from wkhost.plugin_host.supervisor import DRAIN_S, Supervisor
from wkhost.plugin_host.threads import in_thread
from wkhost.store import mutations
from wkhost.store.store import Store

Swap = Callable[[str, Plan, Switch], Awaitable[None]]
"""Let another generation take over, and the chain follow. Raises PluginError: nothing changed."""

log = structlog.get_logger(__name__)


class Upgrades:
    """See the module. All changes come one at a time: the caller holds the host's lock."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        api: HostApi,
        observation: Observation,
        running: Callable[[str], Supervisor | None],
        swap: Swap,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._api = api
        self._observation = observation
        self._running = running
        self._swap = swap

    async def take(self, staged: Staged) -> Entry:
        """Make a staged package the installed one; a plugin that runs goes over to it."""
        package, before = staged.package, staged.before
        no = package.manifest.no
        if before is None or before.digest == package.digest or self._running(no) is None:
            return await in_thread(self._catalog.register, staged)
        release = releases.release_of(package, self._catalog.plugins_dir, staged.consent.granted)
        why = f"upgrade to {release.version}"
        return await self._change(before, package, release, staged.consent, None, why)

    async def agree(self, no: str, digest: str, granted: list[str]) -> Entry:
        """Use a version that waited, now that somebody has agreed to what it asks for."""
        entry = await in_thread(self._catalog.registry.get, no)
        release = releases.find_release(entry, digest)
        package = await in_thread(self._catalog.release_package, entry, release)
        agreed = consent(package.manifest, granted, entry, entry.denied)
        if agreed.waiting:
            names = ", ".join(each.name for each in agreed.waiting)
            raise PluginError(f"{no}: {release.version} waits for consent to: {names}")
        release = msgspec.structs.replace(release, granted=agreed.granted)
        why = f"upgrade to {release.version}"
        return await self._change(entry, package, release, agreed, None, why)

    async def go_back(self, no: str, to: str, why: str = "") -> Entry:
        """Go back to a version or snapshot that was agreed to; empty: to the one left last."""
        entry = await in_thread(self._catalog.registry.get, no)
        release, snapshot = releases.way_back(entry, to)
        package = await in_thread(self._catalog.release_package, entry, release)
        agreed = Consent(release.granted or (), entry.denied)
        text = why or f"rollback from {entry.version}"
        changed = await self._change(entry, package, release, agreed, snapshot, text)
        if not why:
            return changed
        note = partial(releases.withdraw, digest=entry.digest, why=why)
        return await in_thread(self._catalog.registry.update, no, note)

    async def bring_values(self, entry: Entry) -> Entry:
        """Copy the values of the version before, where it was left while no server ran."""
        if entry.copy_from is None:
            return entry
        no = entry.no
        old, new = self._api.values(no, entry.copy_from), self._api.values(no, entry.space)
        await old.copy_to(new)
        old.finish_copy(new)
        await self._store.sync()
        change = partial(self._catalog.registry.change, no, copy_from=None)
        return await in_thread(change)

    # --- one change -----------------------------------------------------------------------------

    async def _change(
        self,
        entry: Entry,
        package: Package,
        release: Release,
        agreed: Consent,
        snapshot: Snapshot | None,
        why: str,
    ) -> Entry:
        no = entry.no
        space = entry.last_space + 1 if snapshot is None else snapshot.space
        config = entry.config if snapshot is None else snapshot.config
        cursors: dict[str, int] = {}
        if self._running(no) is not None:
            number = entry.config_number
            if snapshot is not None:
                number = max(number, snapshot.config_number) + 1
            manifest = narrow(package.manifest, agreed.granted, agreed.denied)
            target = msgspec.structs.replace(package, manifest=manifest, space=space)
            plan = Plan(target, merge_config(manifest.schema, manifest.config, config), number)
            places = None if snapshot is None else snapshot.cursors
            cursors = await self._run(entry, plan, places, copy=snapshot is None)
            copied = True
        else:
            copied = False
        commit = partial(
            self._catalog.commit,
            no,
            release=release,
            consent=agreed,
            snapshot=snapshot,
            why=why,
            cursors=cursors,
            copied=copied,
        )
        changed = await in_thread(commit)
        for gone in await in_thread(self._catalog.prune, no):
            await self._api.drop_values(no, gone)
        log.info("plugin_version", plugin=no, version=release.version, why=why)
        return changed

    async def _run(
        self, entry: Entry, plan: Plan, places: Mapping[str, int] | None, *, copy: bool
    ) -> dict[str, int]:
        """Let the new version take over; return where the observers were, by hook."""
        no = entry.no
        old, new = self._api.values(no, entry.space), self._api.values(no, plan.package.space)
        cursors: dict[str, int] = {}

        async def before() -> None:
            cursors.update(await self._observation.settle(no, DRAIN_S))

        def at() -> None:
            if copy:
                old.finish_copy(new)
            for hook, position in (places or {}).items():
                self._store.write(mutations.put_cursor(cursor_name(no, hook), position))

        try:
            if copy:
                await old.copy_to(new)
            await self._swap(no, plan, Switch(before, at))
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + DRAIN_S):
                if copy:
                    old.abandon_copy()
                    await self._api.drop_values(no, plan.package.space)
            raise
        await self._store.sync()
        return cursors
