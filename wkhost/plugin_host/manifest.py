"""plugin.toml -> a frozen Manifest. Says every error at once; knows nothing of processes.

The file, with its defaults (only `no`, `version` and one of `main` and `command` are required):

    [plugin]
    no = "echo"                 # a-z, then a-z 0-9 . _ -, at most 63 characters
    version = "1.0.0"
    name = ""                   # for people
    description = ""
    stage = "transform"         # guard | transform | seal | observe
    priority = 0                # larger is asked first within a stage
    before = []                 # numbers of plugins of the same stage that come later
    after = []

    [run]
    main = "main.py"            # a Python plugin, started by plugin_sdk
    command = ["node", "m.js"]  # or any other program, relative to the plugin's folder
    spare = false               # true: a second process waits to take over at once

    [hooks.send]                # send, channel_get, user_get, webhook, receive, persist_after
    policy = "closed"           # open | closed | hold (hold: only send); defaults per hook below
    hold_ms = 2000
    payload = false             # true: the hook sees (and may replace) message payloads
    channel_types = []          # predicates; an empty list matches everything
    uids = []                   # globs on the sender
    channels = []               # globs on the stored channel id
    payload_types = []          # numbers in the "type" field of JSON payloads
    min_bytes = 0
    max_bytes = 0               # 0 = no limit

    [hooks.user_get]
    login_policy = "closed"     # what a failure decides where the call decides a login

    [hooks.persist_after]
    from = "now"                # or "beginning"

    [hooks.receive]
    bound = []                  # globs of recipients: hear of these, online or not, and no others

    [capabilities]              # everything is denied unless written here
    send_as = []                # globs of uids that the plugin may send as
    send_rate = 10              # sends per second without the lineage of a call
    messages_read = false       # true, or a list of "channel_type:glob"
    channels_read = false
    users_read = false
    kv_bytes = 0                # quota of the plugin's key-value store
    token = false               # user_get sees the token of a login
    egress = []                 # hosts it may reach: "api.example.com:443", "*.example.com:443"

    [limits]
    memory_mb = 512
    open_files = 256
    file_mb = 64                # largest file that it may write
    processes = 64              # threads count too
    cpu_percent = 100
    data_mb = 256               # of the data folder
    data_files = 10000
    calls_per_s = 500           # calls of the host's API; those beyond wait

    [sandbox]
    require = []                # layers without which the plugin is not to be started
    subprocesses = false        # true: it may start processes and execute programs

    [config]                    # defaults; the operator overrides them by name

    [schema.words]              # optional, per name of [config]
    type = "list"               # text | integer | number | flag | list | table
    help = ""
    choices = []
    min = 0
    max = 10

    [schema.api_key]            # a secret is no part of [config]: `wkhost plugin secret set`
    type = "text"
    secret = true
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.hooks.chain import Stage
from wkhost.hooks.verdict import Policy
from wkhost.plugin_host.config_schema import Setting, check_config, read_schema
from wkhost.plugin_host.egress_rules import EgressRefusedError, Target, parse_target
from wkhost.plugin_host.fields import Fields

MANIFEST_NAME = "plugin.toml"
MAX_MANIFEST_BYTES = 256 * 1024
NO_PATTERN = re.compile(r"(?!(?:client|http)\Z|registry\.)[a-z][a-z0-9._-]{0,62}")
"""A plugin's number. It names a folder beside the registry's files, and as the door of a message
it stands beside "client" and "http"."""
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_GLOB = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_SCOPE = re.compile(r"(\*|[0-9]{1,3}):[^\x00-\x1f\x7f]{1,256}")
_ARGUMENT = re.compile(r"[^\x00]{1,1024}")
_PLAIN = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f]*")
_TEXT = "a text of at most 1,024 characters"
_GLOB_TEXT = 'a pattern such as "team-*"'
SANDBOX_LAYERS = (
    *("fs", "net", "pid", "syscalls"),
    *("landlock", "uid", "memory", "processes", "cpu"),
)
"""What `sandbox.require` may name. Each holds or does not; see docs/security.md."""
_LAYER = re.compile("|".join(SANDBOX_LAYERS))
_STAGES = {stage.name.lower(): stage for stage in Stage}

DEFAULT_POLICIES = {
    "send": Policy.CLOSED,
    "channel_get": Policy.OPEN,
    "user_get": Policy.OPEN,
    "webhook": Policy.OPEN,
    "receive": Policy.OPEN,
    "persist_after": Policy.OPEN,
}
"""Hooks of the manifest and what a failure decides when the manifest does not say.

`user_get` has a `login_policy` besides, closed by default. `persist_after` is retried whatever
stands here.
"""


class HookSpec(msgspec.Struct, frozen=True):
    """One hook of a plugin: what a failure decides, and which messages concern it."""

    policy: Policy
    login_policy: Policy = Policy.CLOSED
    hold_ms: int = 2000
    payload: bool = False
    channel_types: tuple[int, ...] = ()
    uids: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    payload_types: tuple[int, ...] = ()
    min_bytes: int = 0
    max_bytes: int = 0
    from_beginning: bool = False
    bound: tuple[str, ...] = ()


class Capabilities(msgspec.Struct, frozen=True):
    """What a plugin may ask of the host. `messages_read` holds "channel_type:glob" scopes."""

    send_as: tuple[str, ...] = ()
    send_rate: int = 10
    messages_read: tuple[str, ...] = ()
    channels_read: bool = False
    users_read: bool = False
    kv_bytes: int = 0
    token: bool = False
    egress: tuple[Target, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """Upper bounds of one process. `processes` and `cpu_percent` need a layer that has them."""

    memory_mb: int = 512
    open_files: int = 256
    file_mb: int = 64
    processes: int = 64
    cpu_percent: int = 100
    data_mb: int = 256
    data_files: int = 10_000
    calls_per_s: int = 500


class Sandbox(msgspec.Struct, frozen=True):
    """What a plugin wants of its sandbox: at least `require`, and to start processes or not."""

    require: tuple[str, ...] = ()
    subprocesses: bool = False


class Manifest(msgspec.Struct, frozen=True):
    """A plugin's own description. Exactly one of `main` and `command` is not empty."""

    no: str
    version: str
    name: str = ""
    description: str = ""
    stage: Stage = Stage.TRANSFORM
    priority: int = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    main: str = ""
    command: tuple[str, ...] = ()
    hooks: dict[str, HookSpec] = {}
    capabilities: Capabilities = Capabilities()
    limits: Limits = Limits()
    sandbox: Sandbox = Sandbox()
    config: dict[str, Any] = {}
    schema: dict[str, Setting] = {}
    spare: bool = False
    withheld: tuple[str, ...] = ()
    """Hooks of the file that were not granted; never read from it."""


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/plugin.toml. Raises PluginError with one line per error."""
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PluginError(f"{MANIFEST_NAME}: cannot be read ({error.strerror})") from error
    return parse_manifest(data)


def parse_manifest(data: bytes) -> Manifest:
    """Check the whole file. Raises PluginError with one line per error, each naming its field."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise PluginError(f"{MANIFEST_NAME}: larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PluginError(f"{MANIFEST_NAME}: not TOML ({error})") from error
    except RecursionError as error:
        raise PluginError(f"{MANIFEST_NAME}: nested too deeply") from error
    errors: list[str] = []
    manifest = _build(Fields(table, "", errors))
    if errors:
        raise PluginError(f"{MANIFEST_NAME}: " + "\n".join(errors))
    return manifest


def _build(root: Fields) -> Manifest:
    plugin = root.sub("plugin")
    no_what = "a-z, then up to 62 of a-z 0-9 . _ - (client, http and registry.* are taken)"
    main, command, spare = _read_run(root.sub("run"))
    schema, config = read_schema(root.sub("schema")), root.take("config", {})
    if not isinstance(config, dict):
        root.error("config", "expected a table of default values")
        config = {}
    root.errors.extend(f"config.{line}" for line in check_config(schema, config))
    manifest = Manifest(
        no=plugin.text("no", None, pattern=NO_PATTERN, what=no_what),
        version=plugin.text("version", None, pattern=_VERSION, what='a version such as "1.0.0"'),
        name=plugin.text("name", "", pattern=_PLAIN, what=_TEXT),
        description=plugin.text("description", "", pattern=_PLAIN, what=_TEXT),
        stage=_STAGES[plugin.choice("stage", "transform", tuple(_STAGES))],
        priority=plugin.integer("priority", 0, -1_000_000, 1_000_000),
        before=plugin.texts("before", pattern=NO_PATTERN, what="a plugin's number"),
        after=plugin.texts("after", pattern=NO_PATTERN, what="a plugin's number"),
        main=main,
        command=command,
        spare=spare,
        hooks=_read_hooks(root.sub("hooks")),
        capabilities=_read_capabilities(root.sub("capabilities")),
        limits=_read_limits(root.sub("limits")),
        sandbox=_read_sandbox(root.sub("sandbox")),
        config=config,
        schema=schema,
    )
    plugin.finish()
    root.finish()
    return manifest


def _read_run(run: Fields) -> tuple[str, tuple[str, ...], bool]:
    main = run.text("main", "", what='the path of a Python file such as "main.py"')
    command = run.texts("command", pattern=_ARGUMENT, what="a word of the command line")
    path = PurePosixPath(main)
    if bool(main) == bool(command):
        run.error("main", "expected exactly one of main (Python) and command (anything else)")
    elif main and (path.is_absolute() or ".." in path.parts or "\x00" in main):
        run.error("main", "expected a path inside the plugin's folder")
    spare = run.flag("spare", False)
    run.finish()
    return main, command, spare


def _read_hooks(hooks: Fields) -> dict[str, HookSpec]:
    found: dict[str, HookSpec] = {}
    for name in hooks.names():
        if name in DEFAULT_POLICIES:
            found[name] = _read_hook(hooks.sub(name), name)
        else:
            hooks.take(name)
            hooks.error(name, f"unknown hook, expected one of: {', '.join(DEFAULT_POLICIES)}")
    return found


def _read_hook(hook: Fields, name: str) -> HookSpec:
    policies = ("open", "closed", "hold") if name == "send" else ("open", "closed")
    policy = DEFAULT_POLICIES[name]
    from_beginning = False
    if name == "persist_after":
        from_beginning = hook.choice("from", "now", ("now", "beginning")) == "beginning"
    else:
        policy = Policy(hook.choice("policy", policy.value, policies))
    if name not in ("send", "receive", "persist_after"):
        login = Policy.CLOSED
        if name == "user_get":
            login = Policy(hook.choice("login_policy", login.value, policies))
        hook.finish()
        return HookSpec(policy=policy, login_policy=login)
    hold_ms = hook.integer("hold_ms", 2000, 1, 30_000) if name == "send" else 2000
    spec = HookSpec(
        policy=policy,
        hold_ms=hold_ms,
        payload=hook.flag("payload", False),
        channel_types=hook.integers("channel_types", 1, 255),
        uids=hook.texts("uids", pattern=_GLOB, what=_GLOB_TEXT),
        channels=hook.texts("channels", pattern=_GLOB, what=_GLOB_TEXT),
        payload_types=hook.integers("payload_types", -(2**31), 2**31 - 1),
        min_bytes=hook.integer("min_bytes", 0, 0, 2**31 - 1),
        max_bytes=hook.integer("max_bytes", 0, 0, 2**31 - 1),
        from_beginning=from_beginning,
        bound=hook.texts("bound", pattern=_GLOB, what=_GLOB_TEXT) if name == "receive" else (),
    )
    if spec.max_bytes and spec.max_bytes < spec.min_bytes:
        hook.error("max_bytes", "expected 0 or at least min_bytes")
    hook.finish()
    return spec


def _read_capabilities(fields: Fields) -> Capabilities:
    reads: tuple[str, ...]
    if isinstance(fields.take("messages_read", False), bool):
        reads = ("*:*",) if fields.take("messages_read", False) else ()
    else:
        what = 'true, false, or scopes such as "2:team-*"'
        reads = fields.texts("messages_read", pattern=_SCOPE, what=what)
    capabilities = Capabilities(
        send_as=fields.texts("send_as", pattern=_GLOB, what='a pattern such as "bot_*"'),
        send_rate=fields.integer("send_rate", 10, 0, 1_000_000),
        messages_read=reads,
        channels_read=fields.flag("channels_read", False),
        users_read=fields.flag("users_read", False),
        kv_bytes=fields.integer("kv_bytes", 0, 0, 2**40),
        token=fields.flag("token", False),
        egress=_read_egress(fields),
    )
    fields.finish()
    return capabilities


def _read_egress(fields: Fields) -> tuple[Target, ...]:
    found: list[Target] = []
    for text in fields.texts("egress", pattern=_GLOB, what='a host such as "api.example.com:443"'):
        try:
            found.append(parse_target(text))
        except EgressRefusedError as error:
            fields.error("egress", str(error))
    return tuple(found)


def _read_limits(fields: Fields) -> Limits:
    limits = Limits(
        memory_mb=fields.integer("memory_mb", 512, 64, 1_048_576),
        open_files=fields.integer("open_files", 256, 32, 65_536),
        file_mb=fields.integer("file_mb", 64, 1, 1_048_576),
        processes=fields.integer("processes", 64, 1, 4096),
        cpu_percent=fields.integer("cpu_percent", 100, 1, 100_000),
        data_mb=fields.integer("data_mb", 256, 1, 1_048_576),
        data_files=fields.integer("data_files", 10_000, 10, 10_000_000),
        calls_per_s=fields.integer("calls_per_s", 500, 1, 10_000),
    )
    fields.finish()
    return limits


def _read_sandbox(fields: Fields) -> Sandbox:
    layers = f"one of {', '.join(SANDBOX_LAYERS)}"
    sandbox = Sandbox(
        require=fields.texts("require", pattern=_LAYER, what=layers),
        subprocesses=fields.flag("subprocesses", False),
    )
    fields.finish()
    return sandbox
