"""Plugins that take all they can get, each of another resource, made on the fly."""

from __future__ import annotations

from pathlib import Path

NO = "hog"
CHANNEL = "hogs-own"
"""The group whose messages a hog with a `send` hook judges."""

_SPIN = """\
    def _begin(self):
        for _ in range(2):
            if os.fork() == 0:
                while True:
                    pass
        threading.Thread(target=self._spin, daemon=True).start()

    def _spin(self):
        while True:
            pass
"""
_MEMORY = """\
    def _begin(self):
        threading.Thread(target=self._grow, daemon=True).start()

    def _grow(self):
        held = []
        while True:
            try:
                held.append(bytearray(b"x") * (4 << 20))
            except MemoryError:
                held.clear()
                time.sleep(0.01)
"""
_LOGS = """\
    def _begin(self):
        for descriptor in (1, 2):
            threading.Thread(target=self._print, args=(descriptor,), daemon=True).start()

    def _print(self, descriptor):
        lines = b"".join(b"line %d of a flood\\n" % n for n in range(4000))
        while True:
            os.write(descriptor, lines)
"""
_CALLS = """\
    def _begin(self):
        self._tasks = [asyncio.create_task(self._call()) for _ in range(1000)]

    async def _call(self):
        while True:
            try:
                await self.host.kv.put(b"key", bytes(10_000))
                await self.host.kv.scan()
            except HostError:
                await asyncio.sleep(0)
"""
_SILENT = """\
    def _begin(self):
        self.silent = True
"""
_FORKS = """\
    def _begin(self):
        threading.Thread(target=self._fork, daemon=True).start()

    def _fork(self):
        while True:
            try:
                if os.fork() == 0:
                    while True:
                        try:
                            os.fork()
                        except OSError:
                            time.sleep(0.001)
            except OSError:
                time.sleep(0.001)
"""
_THREADS = """\
    def _begin(self):
        threading.Thread(target=self._multiply, daemon=True).start()

    def _multiply(self):
        while True:
            try:
                threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            except RuntimeError:
                time.sleep(0.001)
"""
_DISK = """\
    def _begin(self):
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self):
        block, number = os.urandom(1 << 20), 0
        while True:
            try:
                with open(self.data_dir / f"{number}.bin", "wb") as file:
                    for _ in range(32):
                        file.write(block)
                number += 1
            except OSError:
                for path in self.data_dir.glob("*.bin"):
                    path.unlink()
                number = 0
"""

KINDS = {
    "cpu": _SPIN,
    "memory": _MEMORY,
    "logs": _LOGS,
    "calls": _CALLS,
    "silent": _SILENT,
    "forks": _FORKS,
    "threads": _THREADS,
    "disk": _DISK,
}
"""Kind -> what its process does once it has started."""

_ARGUMENTS = {"persist_after": "messages", "receive": "message, uids", "send": "message"}
HOOKS = tuple(_ARGUMENTS)

_CODE = """\
import asyncio, os, threading, time

from plugin_sdk import HostError, Plugin, hook


class Hog(Plugin):
    silent = False

    @hook
    async def start(self):
        asyncio.get_running_loop().call_later(0.05, self._begin)

    async def _work(self):
        if self.silent:
            await asyncio.Event().wait()

    @hook
    async def {hook}(self, {arguments}):
        await self._work()

{begin}"""

_MANIFEST = """\
[plugin]
no = "{no}"
version = "1.0.0"
description = "Takes all it can get; made for a measurement."
{stage}
[run]
main = "main.py"

[hooks.{hook}]
{keys}

[capabilities]
kv_bytes = 1048576

[sandbox]
subprocesses = true
"""


def write_hog(parent: Path, kind: str, hook: str) -> Path:
    """Write a hog of `kind` that is called by `hook` into a folder of `parent`."""
    folder = parent / f"{kind}-{hook}"
    folder.mkdir(parents=True)
    code = _CODE.format(hook=hook, arguments=_ARGUMENTS[hook], begin=KINDS[kind])
    keys = f'policy = "open"\nchannels = ["{CHANNEL}*"]' if hook == "send" else ""
    stage = "" if hook == "send" else 'stage = "observe"'
    manifest = _MANIFEST.format(no=NO, hook=hook, keys=keys, stage=stage)
    (folder / "main.py").write_text(code, encoding="utf-8")
    (folder / "plugin.toml").write_text(manifest, encoding="utf-8")
    return folder
