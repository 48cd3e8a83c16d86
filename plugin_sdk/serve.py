"""The life of a plugin process: read the control line, dial, shake hands, serve, stop.

The process ends by itself when its host goes away: it has nothing to do without one, and the host
starts a fresh one. Exit codes: 0 after a stop, 1 a wrong plugin or configuration, 3 host gone.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf.message import DecodeError

from plugin_sdk import egress
from plugin_sdk.connection import Connection
from plugin_sdk.dispatch import Dispatcher, ProtocolError
from plugin_sdk.errors import ConfigError, PluginDefinitionError
from plugin_sdk.host import Host
from plugin_sdk.log import Log
from plugin_sdk.plugin import Plugin, bind_config, build, find_plugin
from plugin_sdk.secrets import Secrets
from plugin_sdk.serving import HostGoneError, Serving
from plugin_sdk.transport import GrpcTransport, HookStream, connect
from plugin_sdk.version import VERSION
from plugin_sdk.watchdog import Watchdog
from plugin_sdk.wire.v1 import plugin_pb2

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
CREDIT_CALLS = 4096
CREDIT_BYTES = 16 * 1024 * 1024
PACKAGE_NAME = "plugin_package"
EXIT_WRONG_PLUGIN = 1
EXIT_HOST_GONE = 3
_MAX_CONTROL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Control:
    """What the host says over the inherited descriptor, as one line of JSON.

    `token` is hexadecimal on the line; `protocol` is the newest number that the host speaks.
    """

    socket: str
    token: bytes = field(repr=False)
    protocol: int
    plugin_dir: Path
    data_dir: Path
    main: str = "main.py"
    egress: str = ""
    """Path of the proxy's socket, where the plugin may reach hosts."""


def read_control(
    descriptor: int, prepare: Callable[[Path, str], Any] = lambda plugin_dir, main: None
) -> Control:
    """Read the control line and close the descriptor. Raises ValueError naming what is wrong.

    A line that names the code alone may come first, a long time before: this process is to be
    ready then. `prepare` is called with it.
    """
    with os.fdopen(descriptor, "rb", closefd=True) as stream:
        raw = _read_line(stream)
        if "prepare" in raw:
            prepare(Path(raw["prepare"]["plugin_dir"]), str(raw["prepare"]["main"]))
            raw = _read_line(stream)
    for name, kind in (("socket", str), ("token", str), ("plugin_dir", str), ("data_dir", str)):
        if not isinstance(raw.get(name), kind):
            raise ValueError(f"control line: {name}: expected a string")
    return Control(
        socket=raw["socket"],
        token=bytes.fromhex(raw["token"]),
        protocol=int(raw.get("protocol", PROTOCOL_MAX)),
        plugin_dir=Path(raw["plugin_dir"]),
        data_dir=Path(raw["data_dir"]),
        main=str(raw.get("main", "main.py")),
        egress=str(raw.get("egress", "")),
    )


def _read_line(stream: Any) -> dict[str, Any]:
    line = stream.readline(_MAX_CONTROL_BYTES)
    if not line.endswith(b"\n"):
        raise ValueError("control line: expected one line of JSON, got its end")
    raw: dict[str, Any] = json.loads(line)
    return raw


def load_plugin(plugin_dir: Path, main: str) -> type[Plugin]:
    """Import the plugin's main file and find its class. Raises PluginDefinitionError.

    A folder with an `__init__.py` is imported as a package, so that its files can import each other
    relatively; the files of any other folder import each other by name.
    """
    path = plugin_dir / main
    if not path.is_file():
        raise PluginDefinitionError(f"{path}: expected the plugin's main file, found none")
    package_file = plugin_dir / "__init__.py"
    if package_file.is_file():
        _import_file(PACKAGE_NAME, package_file, [str(plugin_dir)])
        return find_plugin(_import_file(f"{PACKAGE_NAME}.{path.stem}", path))
    sys.path.insert(0, str(plugin_dir))
    return find_plugin(_import_file(path.stem, path))


def _import_file(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise PluginDefinitionError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def serve(control: Control, plugin_class: type[Plugin], log: Log) -> None:
    """Serve until the host says stop. Raises HostGoneError, ProtocolError, ConfigError."""
    try:
        connection = await connect(control.socket)
    except OSError as error:
        raise HostGoneError(f"{control.socket}: {error}") from None
    try:
        await _serve_stream(control, plugin_class, connection, HookStream(connection), log)
    finally:
        connection.close()


async def _serve_stream(
    control: Control,
    plugin_class: type[Plugin],
    connection: Connection,
    stream: HookStream,
    log: Log,
) -> None:
    welcome = await _shake_hands(control, plugin_class, stream)
    secrets = await _read_secrets(stream) if welcome.secrets_follow else Secrets()
    loop = asyncio.get_running_loop()
    plugin = build(
        plugin_class,
        host=Host(GrpcTransport(connection), loop),
        log=log,
        data_dir=control.data_dir,
        binding=bind_config(plugin_class, welcome.config_json, welcome.config_number),
        secrets=secrets,
    )
    dispatcher = Dispatcher(plugin, loop, max_payload_bytes=welcome.max_payload_bytes)
    await dispatcher.lifecycle("start")
    watchdog = Watchdog(plugin, loop, log)
    watchdog.start()
    try:
        credit = plugin_pb2.Credit(calls=CREDIT_CALLS, bytes=CREDIT_BYTES)
        stream.send(plugin_pb2.PluginFrame(credit=credit).SerializeToString())
        await Serving(stream, dispatcher).run()
    finally:
        watchdog.stop()


async def _shake_hands(
    control: Control, plugin_class: type[Plugin], stream: HookStream
) -> plugin_pb2.Welcome:
    hello = plugin_pb2.Hello(
        token=control.token,
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        sdk=f"python {VERSION}",
        hooks=plugin_class.wire_hooks(),
    )
    stream.send(plugin_pb2.PluginFrame(hello=hello).SerializeToString())
    frame = await _read_frame(stream)
    welcome: plugin_pb2.Welcome = frame.welcome
    if not frame.HasField("welcome") or not PROTOCOL_MIN <= welcome.protocol <= PROTOCOL_MAX:
        raise ProtocolError(
            f"expected a Welcome with protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, "
            f"got {welcome.protocol}"
        )
    return welcome


async def _read_secrets(stream: HookStream) -> Secrets:
    frame = await _read_frame(stream)
    if not frame.HasField("secrets"):
        raise ProtocolError("expected Secrets after the Welcome that announced them")
    return Secrets({secret.name: secret.value for secret in frame.secrets.secrets})


async def _read_frame(stream: HookStream) -> plugin_pb2.HostFrame:
    data = await stream.read()
    if data is None:
        status, text = stream.over or ("UNKNOWN", "")
        why = f"{status}: {text}" if text else "the host closed the stream"
        raise HostGoneError(f"{why} (during the handshake)")
    try:
        return plugin_pb2.HostFrame.FromString(data)
    except DecodeError:
        raise ProtocolError("a frame is not a HostFrame") from None


def _open_egress(path: str, log: Log) -> None:
    """A plugin without its way out may be of use still, so this is told and no more."""
    try:
        egress.start(path)
    except OSError as error:
        log.warning("no way out", reason=str(error))


def main(descriptor: int) -> int:
    """Run the plugin named by the control line; returns the exit code."""
    log = Log()
    try:
        loaded: list[type[Plugin]] = []
        control = read_control(descriptor, lambda *code: loaded.append(load_plugin(*code)))
        if control.egress:
            _open_egress(control.egress, log)
        plugin_class = loaded[0] if loaded else load_plugin(control.plugin_dir, control.main)
        _run(serve(control, plugin_class, log))
    except (PluginDefinitionError, ConfigError, ValueError) as error:
        log.error("plugin cannot start", reason=str(error))
        return EXIT_WRONG_PLUGIN
    except ProtocolError as error:
        log.error("host speaks otherwise", reason=str(error))
        return EXIT_WRONG_PLUGIN
    except HostGoneError as error:
        log.warning("host gone", reason=str(error))
        return EXIT_HOST_GONE
    except Exception as error:  # noqa: BLE001 - the plugin's own; its text may hold a secret
        log.write_text("".join(traceback.format_exception(error)).rstrip())
        return EXIT_WRONG_PLUGIN
    return 0


def _run(work: Any) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
