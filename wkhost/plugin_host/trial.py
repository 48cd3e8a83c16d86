"""A dry run: one message through copies of the enabled plugins, apart from the server.

Runs in a process of its own, on copies of the packages, data folders and values. It is the real
way: the real dispatcher, chain and policies, and real plugin processes in their sandbox. But what
plugins send is only noted, their reads of messages, channels and users find nothing, and nothing
leaves by egress. Permissions are not checked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from wkhost.errors import PluginError
from wkhost.hooks.chain import EMPTY_CHAIN, Chain, Step
from wkhost.hooks.dispatch import Dispatcher
from wkhost.hooks.passage import Passage
from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer, SendCall, SendOrigin
from wkhost.link.contract import SendMessage, Sent
from wkhost.plugin_host.audit import AUDIT_FOLDER
from wkhost.plugin_host.host import PluginHost
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.plugin_host.kv import KeyValues
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.plugin_host.registry import Registry
from wkhost.plugin_host.secret_store import SecretKey
from wkhost.store.store import Store, open_store
from wkhost.types import Message

MESSAGE_ID = 1
STOP_S = 8.0
_NO_QUOTA = 1 << 62
"""Copies were within the quota when they were written."""
_LEFT_OUT = ("*.lock", AUDIT_FOLDER, ".*")

Values = Mapping[str, Sequence[tuple[bytes, bytes]]]
"""Plugin -> its keys and values."""


class TrialStep(msgspec.Struct, frozen=True):
    """What one plugin made of the message.

    `state`: asked, skipped (the message does not concern it), not_asked (the policy decided without
    a call) or not_reached (refused before). `before` and `after` are payloads.
    """

    no: str
    version: str
    state: str
    before: bytes
    after: bytes
    outcome: str = ""
    took_s: float = 0.0
    policy: str = ""
    code: int = 0
    text: str = ""


class TrialSend(msgspec.Struct, frozen=True):
    """A message that a plugin would have sent."""

    no: str
    from_uid: str
    channel_id: str
    channel_type: int
    payload: bytes


class Trial(msgspec.Struct, frozen=True):
    """The outcome. `code` and `text` are set when the message would be refused.

    `network` says what keeps each plugin from the network; "none" where nothing does.
    """

    payload: bytes
    code: int
    text: str
    steps: list[TrialStep]
    sends: list[TrialSend]
    network: dict[str, str]
    problems: list[str]


class TrialSettings(msgspec.Struct, frozen=True):
    budget_s: float
    max_payload_bytes: int
    host_version: str
    secret_key: SecretKey | None = None


async def try_message(
    message: Message,
    plugins_dir: Path,
    folder: Path,
    values: Values,
    settings: TrialSettings,
    names: Sequence[str] | None = None,
) -> Trial:
    """Run `message` through copies of the plugins `names`, or of those enabled in `plugins_dir`.

    `folder` is an empty private folder with a short path. Raises PluginError.
    """
    copy = folder / "plugins"
    await trio.to_thread.run_sync(copy_plugins, plugins_dir, copy)
    store = await open_store(None)
    await _put_values(store, copy, values)
    run = _Run(store, settings)
    async with trio.open_nursery() as nursery:
        host = run.host(copy, folder / "r")
        await nursery.start(run.dispatcher.run)
        await nursery.start(host.run)
        try:
            await host.start_set(names)
            await run.decide(message)
        finally:
            with trio.move_on_after(STOP_S, shield=True):
                network, problems = _look_at(host, names)
                await host.stop()
            nursery.cancel_scope.cancel()
    await store.close()
    return run.result(network, problems)


def copy_plugins(plugins_dir: Path, copy: Path) -> None:
    """Copy packages, data folders and registry; not the audit log, nor what is being installed.

    Blocks. Raises PluginError.
    """
    if not plugins_dir.is_dir():
        copy.mkdir(mode=0o700)
        return
    try:
        shutil.copytree(plugins_dir, copy, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    except (OSError, shutil.Error) as error:
        raise PluginError(f"{plugins_dir}: cannot be copied for a dry run ({error})") from error


def read_values(store: Store, plugins_dir: Path, no: str) -> list[tuple[bytes, bytes]]:
    """Return all values that a plugin works with. Raises PluginError, StoreError."""
    values = KeyValues(no, store, Registry(plugins_dir).get(no).space)
    found: list[tuple[bytes, bytes]] = []
    more = True
    while more:
        page, more = values.scan(b"", found[-1][0] if found else b"", 0)
        found += [(entry.key, entry.value) for entry in page]
    return found


async def _put_values(store: Store, plugins_dir: Path, values: Values) -> None:
    entries = Registry(plugins_dir).entries()
    for no, pairs in values.items():
        kept = KeyValues(no, store, entries[no].space)
        for key, value in pairs:
            await kept.put(key, value, _NO_QUOTA)


def _look_at(host: PluginHost, names: Sequence[str] | None) -> tuple[dict[str, str], list[str]]:
    """Return what keeps each plugin from the network, and who does not run and why."""
    network, problems = {}, []
    for status in host.list().plugins:
        wanted = status.enabled if names is None else status.no in names
        if wanted and status.state != "running":
            problems.append(f"{status.no}: {status.state}, {status.detail}")
        with suppress(PluginError):
            network[status.no] = host.layers(status.no).get("net", "none")
    return network, problems


class _Watched:
    """A plugin of the chain that notes the payload it was given. Implements `Target`."""

    def __init__(self, proxy: PluginProxy) -> None:
        self._proxy = proxy
        self.given: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxy, name)

    @property
    def no(self) -> str:
        return self._proxy.no

    @property
    def ready(self) -> bool:
        return self._proxy.ready

    @property
    def lines(self) -> HookLines:
        return self._proxy.lines

    def check_health(self, budget_s: float, reply: Callable[[Answer], None]) -> bool:
        return self._proxy.check_health(budget_s, reply)

    def submit_send(self, call: SendCall) -> bool:
        self.given = call.message.payload
        return self._proxy.submit_send(call)


class _Run:
    """One dry run. It is the plugins' kernel: `HostServices` that note and do nothing."""

    def __init__(self, store: Store, settings: TrialSettings) -> None:
        self._store = store
        self._settings = settings
        self._chain: Chain = EMPTY_CHAIN
        self._decided = trio.Event()
        self._watched: list[tuple[_Watched, bool]] = []
        self._original = b""
        self._sends: list[TrialSend] = []
        self._passage: Passage | None = None
        self.dispatcher = Dispatcher(
            clock=trio.current_time,
            decided=lambda passage: self._decided.set(),
            recheck=lambda passage: None,
            turn_done=lambda: None,
            budget_s=settings.budget_s,
            max_payload_bytes=settings.max_payload_bytes,
        )

    def host(self, plugins_dir: Path, runtime_dir: Path) -> PluginHost:
        return PluginHost(
            plugins_dir=plugins_dir,
            runtime_dir=runtime_dir,
            store=self._store,
            answers=self.dispatcher,
            services=self,
            chain_changed=self._chain_changed,
            max_payload_bytes=self._settings.max_payload_bytes,
            host_version=self._settings.host_version,
            secret_key=self._settings.secret_key,
            egress_on=False,
        )

    def _chain_changed(self, chain: Chain) -> None:
        self._chain = chain

    async def decide(self, message: Message) -> None:
        """Take the message through the chain and wait for its fate."""
        self._original = message.payload
        steps: list[Step] = []
        for step in self._chain.send:
            assert isinstance(step.target, PluginProxy)
            watched = _Watched(step.target)
            concerned = step.matches is None or step.matches(message)
            self._watched.append((watched, concerned))
            steps.append(msgspec.structs.replace(step, target=watched))
        chain = Chain(self._chain.number, send=tuple(steps))
        self._passage = Passage(message, SendOrigin("client", 1, "try", 0), chain)
        if not self.dispatcher.begin(self._passage):
            await self._decided.wait()

    def result(self, network: dict[str, str], problems: list[str]) -> Trial:
        assert self._passage is not None
        refusal = self._passage.refusal
        return Trial(
            payload=self._passage.message.payload,
            code=0 if refusal is None else refusal.code,
            text="" if refusal is None else refusal.text,
            steps=self._steps(),
            sends=self._sends,
            network=network,
            problems=problems,
        )

    def _steps(self) -> list[TrialStep]:
        assert self._passage is not None
        entries = self.dispatcher.journal.find(MESSAGE_ID)
        heard = {h.plugin.no: (h, h.plugin.version) for h in entries if h.plugin is not None}
        final = self._passage.message.payload
        steps: list[TrialStep] = []
        # From the end: what a plugin left is what the next one was given.
        for watched, concerned in reversed(self._watched):
            before = final if watched.given is None else watched.given
            if watched.no not in heard:
                state = "not_reached" if concerned else "skipped"
                version = watched.lines.version
                steps.append(TrialStep(watched.no, version, state, before, final))
                continue
            h, version = heard[watched.no]
            asked = h.called_at > 0.0
            steps.append(
                TrialStep(
                    no=watched.no,
                    version=version,
                    state="asked" if asked else "not_asked",
                    before=before,
                    after=final,
                    outcome=h.outcome.value if h.outcome else "",
                    took_s=h.answered_at - h.called_at if asked else 0.0,
                    policy=h.policy.value if h.policy else "",
                    code=h.code,
                    text=h.text,
                )
            )
            final = before
        return steps[::-1]

    # --- HostServices ---------------------------------------------------------------------------

    async def send_message(self, request: SendMessage, door: str, hop: int) -> Sent:
        await trio.lowlevel.checkpoint()
        self._sends.append(
            TrialSend(
                door, request.from_uid, request.channel_id, request.channel_type, request.payload
            )
        )
        return Sent(MESSAGE_ID + len(self._sends), 0, request.client_msg_no, 1)

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        return ()

    async def recipients(self, message: Message) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def offline_recipients(self, message: Message) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []
