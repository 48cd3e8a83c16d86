"""A plugin host with a memory store, a recording dispatcher, and plugins written into a folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import trio

from wkhost.hooks.chain import EMPTY_CHAIN, Chain
from wkhost.hooks.records import HookLines
from wkhost.hooks.target import Answer, SendCall, SendOrigin, Target
from wkhost.link.contract import (
    GetPluginLogs,
    InspectPlugin,
    InstallPlugin,
    PluginConfig,
    PluginStatus,
    SendMessage,
    Sent,
    SetPluginConfig,
)
from wkhost.plugin_host.host import PluginHost
from wkhost.plugin_host.host_api import OnlineDevice
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.store.store import Store, open_store
from wkhost.types import Message

CLIENT = SendOrigin(door="client", conn_id=7, device_id="d1", device_flag=1)
MAX_PAYLOAD_BYTES = 512 * 1024

ECHO = """
from plugin_sdk import Plugin, Replace, Refuse, hook

class Echo(Plugin):
    @hook
    def send(self, message):
        if message.payload.startswith(b"refuse"):
            return Refuse(200, "no")
        if message.payload.startswith(b"replace"):
            return Replace(b"changed")
"""


def message(payload: bytes = b"hello", message_id: int = 1, **fields: Any) -> Message:
    values: dict[str, Any] = {
        "channel_id": "u2@u1",
        "channel_type": 1,
        "from_uid": "u1",
        "client_msg_no": f"c{message_id}",
        **fields,
    }
    return Message(message_id=message_id, payload=payload, **values)


class Recorder:
    """A dispatcher that only keeps what it was told, with the time."""

    def __init__(self) -> None:
        self.found: dict[int, list[Answer]] = {}
        self.times: dict[int, float] = {}
        self.moves: list[tuple[int, list[int]]] = []
        """Generation and calls that were issued again to it."""
        self.changed = trio.Event()

    def answered(self, plugin_no: str, answers: Sequence[tuple[int, Answer]]) -> None:
        now = trio.current_time()
        for call_id, answer in answers:
            self.found.setdefault(call_id, []).append(answer)
            self.times[call_id] = now
        self.changed.set()
        self.changed = trio.Event()

    def moved(self, lines: HookLines, call_ids: Sequence[int]) -> None:
        self.moves.append((lines.generation, list(call_ids)))

    async def wait(self, *call_ids: int, within_s: float = 10) -> list[Answer]:
        """Wait until each has an answer; return the first of each."""
        with trio.fail_after(within_s):
            while not all(call_id in self.found for call_id in call_ids):
                await self.changed.wait()
        return [self.found[call_id][0] for call_id in call_ids]


class Services:
    """The kernel's part of the host API: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[SendMessage, str, int]] = []
        self.online: dict[str, list[OnlineDevice]] = {}
        self.members: dict[str, list[str]] = {}
        """Recipients by channel id."""

    async def send_message(self, request: SendMessage, door: str, hop: int) -> Sent:
        await trio.lowlevel.checkpoint()
        self.sent.append((request, door, hop))
        return Sent(1000 + len(self.sent), len(self.sent), request.client_msg_no, 1)

    def online_devices(self, uid: str) -> Sequence[OnlineDevice]:
        return self.online.get(uid, [])

    async def recipients(self, message: Message) -> list[str]:
        await trio.lowlevel.checkpoint()
        return self.members.get(message.channel_id, [])

    async def offline_recipients(self, message: Message) -> list[str]:
        return [uid for uid in await self.recipients(message) if uid not in self.online]


class Running:
    """A running host with everything around it."""

    def __init__(self, folder: Path, store: Store, **options: Any) -> None:
        self.folder = folder
        self.store = store
        self.recorder = Recorder()
        self.services = Services()
        self.chain: Chain = EMPTY_CHAIN
        self.ids = count(1)
        self.host = PluginHost(
            plugins_dir=folder / "plugins",
            runtime_dir=folder / "run",
            store=store,
            answers=self.recorder,
            services=self.services,
            chain_changed=self._chain_changed,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            host_version="test",
            **options,
        )

    def _chain_changed(self, chain: Chain) -> None:
        self.chain = chain

    def target(self, no: str) -> Target:
        for steps in (
            self.chain.send,
            self.chain.receive,
            self.chain.persist_after,
            self.chain.user_get,
            self.chain.channel_get,
            self.chain.webhook,
        ):
            for step in steps:
                if step.target.no == no:
                    return step.target
        raise AssertionError(f"{no} is not in the chain")

    async def install(self, source: str, *, enable: bool = True, **fields: Any) -> PluginStatus:
        """Agree to all that the package asks for, and install it; `fields` as in the request."""
        digest = (await self.host.versions.inspect(InspectPlugin(source))).digest
        request = InstallPlugin(source, enable, **{"digest": digest, **fields})
        return await self.host.versions.install(request)

    async def configure(self, no: str, **values: Any) -> PluginConfig:
        return await self.host.tuning.configure(SetPluginConfig(no, values), by=os.geteuid())

    def logs(self, no: str) -> list[str]:
        return self.host.logs(GetPluginLogs(no, limit=2000)).lines

    def send(self, target: Target, payload: bytes = b"hello", budget_s: float = 5.0) -> int:
        """Submit a `send` call; return its id."""
        call_id = next(self.ids)
        call = SendCall(call_id, message(payload, call_id), CLIENT, trio.current_time() + budget_s)
        assert target.submit_send(call)
        return call_id


@asynccontextmanager
async def running(
    folder: Path, *, store_path: Path | None = None, **options: Any
) -> AsyncIterator[Running]:
    """Run a host below `folder`; on leaving it is stopped as the server stops it.

    The store is in memory without a path. `options` go to the PluginHost.
    """
    store = await open_store(store_path)
    async with trio.open_nursery() as nursery:
        it = Running(folder, store, **options)
        await nursery.start(it.host.run)
        yield it
        with trio.move_on_after(8):
            await it.host.stop()
        nursery.cancel_scope.cancel()
    await store.close()


def write_plugin(
    folder: Path,
    no: str = "echo",
    code: str = ECHO,
    *,
    hooks: str = "[hooks.send]\npayload = true\n",
    version: str = "1.0.0",
    extra: str = "",
    plugin: str = "",
) -> str:
    """Write a plugin's folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(code)
    (folder / "plugin.toml").write_text(
        f'[plugin]\nno = "{no}"\nversion = "{version}"\n{plugin}\n'
        f'[run]\nmain = "main.py"\n{hooks}\n{extra}'
    )
    return str(folder)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    """Return when `condition` is true of a world that tells nobody when it changes."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.001)


def opened(target: Target, call_ids: Sequence[int]) -> Callable[[], bool]:
    """A condition: the plugin's current process has all these calls."""
    assert isinstance(target, PluginProxy)

    def condition() -> bool:
        session = target.session
        return session is not None and all(map(session.is_open, call_ids))

    return condition
