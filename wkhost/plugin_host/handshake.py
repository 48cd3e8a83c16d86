"""The first two frames of a stream, as pure functions: is this Hello right, and what is answered.

The token is compared in constant time, and by the session once only.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

import msgspec

from plugin_sdk.wire.v1 import plugin_pb2
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.output import escape

PROTOCOL = 1
LIFECYCLE = frozenset({"config_update", "health", "stop"})
"""Hooks that any plugin may implement; the manifest does not name them."""


class Identity(msgspec.Struct, frozen=True):
    """What a session must know of the generation it belongs to."""

    manifest: Manifest
    generation: int
    config_json: bytes
    config_number: int
    max_payload_bytes: int
    host_version: str
    space: int = 0


def has_token(hello: plugin_pb2.Hello, token: bytes | None) -> bool:
    return token is not None and hmac.compare_digest(token, hello.token)


def refusal(hello: plugin_pb2.Hello, manifest: Manifest) -> str:
    """Return why this program cannot be the plugin of `manifest`; empty when it can."""
    if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
        return (
            f"protocol: expected a range with {PROTOCOL}, "
            f"got {hello.protocol_min} to {hello.protocol_max}"
        )
    wanted = {*manifest.hooks, *manifest.withheld}
    implemented = set(hello.hooks) - LIFECYCLE
    if implemented == wanted:
        return ""
    said = []
    if extra := escape(", ".join(sorted(implemented - wanted)))[:200]:
        said.append(f"in the code, but not in the manifest: {extra} (see [hooks] in plugin.toml)")
    if missing := ", ".join(sorted(wanted - implemented)):
        said.append(f"in the manifest, but not in the code: {missing}")
    return f"hooks {'; '.join(said)}"


def welcome_frame(identity: Identity, *, secrets_follow: bool) -> bytes:
    """Return the `HostFrame` that answers a right Hello."""
    welcome = plugin_pb2.Welcome(
        protocol=PROTOCOL,
        plugin_no=identity.manifest.no,
        plugin_version=identity.manifest.version,
        generation=identity.generation,
        config_json=identity.config_json,
        config_number=identity.config_number,
        host_version=identity.host_version,
        max_payload_bytes=identity.max_payload_bytes,
        secrets_follow=secrets_follow,
    )
    return plugin_pb2.HostFrame(welcome=welcome).SerializeToString()


def secrets_frame(values: Mapping[str, str]) -> bytes:
    """Return the `HostFrame` that carries all secrets of a plugin."""
    frame = plugin_pb2.HostFrame()
    frame.secrets.SetInParent()
    for name, value in values.items():
        frame.secrets.secrets.add(name=name, value=value)
    return frame.SerializeToString()
