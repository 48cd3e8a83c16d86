"""What a plugin asks for, as names that an operator can grant and revoke, in plain words.

Pure. A manifest asks for capabilities; the operator grants some of them; the plugin gets what is in
both, less what was denied (`narrow`). A capability is a name, as `plugin grant` and `plugin revoke`
take it: `hook.send`, `hook.send.payload`, `send_as:bot_*`, `egress:api.example.com:443`. Amounts
stand behind an equals sign (`kv_bytes=65536`): a grant covers every smaller amount too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from wkhost.plugin_host.config_schema import secret_names
from wkhost.plugin_host.manifest import Capabilities, HookSpec, Limits, Manifest

MANY_SENDS = 100
"""Root sends per second above which the rate is marked as dangerous."""

_HOOKS = {
    "send": ("decide about messages before they are accepted", False),
    "channel_get": ("change what is known of a channel, its bans included", True),
    "user_get": ("decide who may log in, and change what is known of a user", True),
    "webhook": ("see, change and drop events on their way to the webhook", False),
    "receive": ("hear of messages to people who are offline, or to its own users", False),
    "persist_after": ("hear of every stored message", False),
}
_LIMITS = {
    "memory_mb": "use up to {} MiB of memory",
    "open_files": "hold up to {} files open",
    "file_mb": "write files of up to {} MiB",
    "processes": "run up to {} processes and threads",
    "cpu_percent": "use up to {} % of one processor",
    "data_mb": "keep up to {} MiB in its data folder",
    "data_files": "keep up to {} files in its data folder",
    "calls_per_s": "call the server up to {} times a second",
}


class Capability(msgspec.Struct, frozen=True):
    """One thing that a plugin asks for. `text` completes "it may ...".

    `text` holds words of the manifest, patterns and names; they are plain characters.
    """

    name: str
    text: str
    dangerous: bool = False


def asked(manifest: Manifest) -> list[Capability]:
    """Return what a manifest asks for, in the order in which people should read it."""
    found = [c for hook, spec in manifest.hooks.items() for c in _of_hook(hook, spec)]
    found += _of_capabilities(manifest)
    found += [
        Capability(f"secret:{name}", f"be given the secret {name}, once you set it")
        for name in secret_names(manifest.schema)
    ]
    if manifest.sandbox.subprocesses:
        text = "start other programs inside its sandbox"
        found.append(Capability("subprocesses", text, dangerous=True))
    defaults = Limits()
    for name, text in _LIMITS.items():
        value = getattr(manifest.limits, name)
        if value > getattr(defaults, name):
            found.append(Capability(f"limit.{name}={value}", text.format(value)))
    return found


def _of_hook(hook: str, spec: HookSpec) -> list[Capability]:
    text, dangerous = _HOOKS[hook]
    what = " (which messages: see the manifest)" if _is_narrow(spec) else ""
    found = [Capability(f"hook.{hook}", text + what, dangerous)]
    if spec.payload:
        reads = "read and replace" if hook == "send" else "read"
        found.append(Capability(f"hook.{hook}.payload", f"{reads} the content of these messages"))
    return found


def _is_narrow(spec: HookSpec) -> bool:
    return bool(spec.channel_types or spec.uids or spec.channels or spec.payload_types)


def _of_capabilities(manifest: Manifest) -> list[Capability]:
    asks = manifest.capabilities
    found: list[Capability] = []
    for glob in asks.send_as:
        everyone = not glob.strip("*?")
        who = "any user" if everyone else f"users that match {glob}"
        reserved = glob.startswith("____")
        found.append(Capability(f"send_as:{glob}", f"send messages as {who}", everyone or reserved))
    if asks.send_as:
        text = f"send {asks.send_rate} messages a second that nothing caused"
        many = asks.send_rate > MANY_SENDS
        found.append(Capability(f"send_rate={asks.send_rate}", text, many))
    for scope in asks.messages_read:
        everything = scope == "*:*"
        what = "all stored messages" if everything else f"stored messages of channels {scope}"
        found.append(Capability(f"messages_read:{scope}", f"read {what}", everything))
    if asks.channels_read:
        found.append(Capability("channels_read", "read the records of channels"))
    if asks.users_read:
        found.append(Capability("users_read", "read who exists and who is online"))
    if asks.kv_bytes:
        text = f"keep {asks.kv_bytes} bytes of values in the server's store"
        found.append(Capability(f"kv_bytes={asks.kv_bytes}", text))
    if asks.token:
        text = "see the tokens that people log in with"
        found.append(Capability("token", text, dangerous=True))
    sees = bool(asks.messages_read) or any(spec.payload for spec in manifest.hooks.values())
    for target in asks.egress:
        text = f"reach {target} over the network"
        if sees:
            text += ", and so carry message content out"
        found.append(Capability(f"egress:{target}", text, dangerous=sees or target.wildcard))
    return found


def names(capabilities: Iterable[Capability]) -> tuple[str, ...]:
    return tuple(capability.name for capability in capabilities)


def missing(
    manifest: Manifest, granted: Collection[str], denied: Collection[str] = ()
) -> list[Capability]:
    """Return what the manifest asks for beyond what was granted; what was denied is settled."""
    found = []
    for capability in asked(manifest):
        if capability.name in granted or is_denied(capability.name, denied):
            continue
        stem, equals, amount = capability.name.partition("=")
        if not equals or int(amount) > largest(stem, granted):
            found.append(capability)
    return found


def largest(stem: str, granted: Collection[str]) -> int:
    """Return the largest amount that was granted of a capability with amounts, 0 without any."""
    amounts = [_amount(name) for name in granted if name.partition("=")[0] == stem and "=" in name]
    return max(amounts, default=0)


def _amount(name: str) -> int:
    text = name.partition("=")[2]
    return int(text) if text.isascii() and text.isdecimal() else 0


def is_denied(name: str, denied: Collection[str]) -> bool:
    """Whether a capability was denied. Denying an amount denies all of it; denying a hook denies
    its payload."""
    stem, equals, _ = name.partition("=")
    if name in denied or (equals and stem in {each.partition("=")[0] for each in denied}):
        return True
    return name.endswith(".payload") and name.removesuffix(".payload") in denied


def find(manifest: Manifest, name: str) -> Capability | None:
    """Return the capability of that name that the manifest asks for; an amount may be left out."""
    for capability in asked(manifest):
        if name in (capability.name, capability.name.partition("=")[0]):
            return capability
    return None


def narrow(manifest: Manifest, granted: Collection[str], denied: Collection[str] = ()) -> Manifest:
    """Return the manifest as it holds: what it asks for, if it was granted and not denied.

    Hooks that are cut stand in `withheld`: the code has them, nobody calls them.
    """

    def has(name: str) -> bool:
        return name in granted and not is_denied(name, denied)

    def up_to(stem: str, wanted: int) -> int:
        if is_denied(f"{stem}={wanted}", denied):
            return 0
        return min(wanted, largest(stem, granted))

    hooks = {
        hook: msgspec.structs.replace(spec, payload=spec.payload and has(f"hook.{hook}.payload"))
        for hook, spec in manifest.hooks.items()
        if has(f"hook.{hook}")
    }
    asks = manifest.capabilities
    send_as = _kept("send_as", asks.send_as, has)
    capabilities = Capabilities(
        send_as=send_as,
        send_rate=up_to("send_rate", asks.send_rate),
        messages_read=_kept("messages_read", asks.messages_read, has),
        channels_read=asks.channels_read and has("channels_read"),
        users_read=asks.users_read and has("users_read"),
        kv_bytes=up_to("kv_bytes", asks.kv_bytes),
        token=asks.token and has("token"),
        egress=_kept("egress", asks.egress, has),
    )
    schema = {
        name: setting
        for name, setting in manifest.schema.items()
        if not setting.secret or has(f"secret:{name}")
    }
    subprocesses = manifest.sandbox.subprocesses and has("subprocesses")
    return msgspec.structs.replace(
        manifest,
        hooks=hooks,
        withheld=tuple(hook for hook in manifest.hooks if hook not in hooks),
        capabilities=capabilities,
        schema=schema,
        limits=_narrow_limits(manifest.limits, up_to),
        sandbox=msgspec.structs.replace(manifest.sandbox, subprocesses=subprocesses),
    )


def _kept(stem: str, items: Sequence[Any], has: Any) -> tuple[Any, ...]:
    return tuple(item for item in items if has(f"{stem}:{item}"))


def _narrow_limits(limits: Limits, up_to: Any) -> Limits:
    """Amounts above the defaults need a grant; the defaults do not."""
    defaults = Limits()
    cut: dict[str, int] = {}
    for name in _LIMITS:
        value, default = getattr(limits, name), getattr(defaults, name)
        if value > default:
            cut[name] = max(default, up_to(f"limit.{name}", value))
    return msgspec.structs.replace(limits, **cut)
