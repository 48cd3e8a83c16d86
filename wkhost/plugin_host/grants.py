"""What one plugin may do: its capabilities, compiled once. Denied unless granted.

The seam for consent: whoever constructs `Grants` decides which capabilities hold, the manifest's
own or what an operator agreed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wkhost.plugin_host.grpc import GrpcError, StatusCode
from wkhost.plugin_host.manifest import Capabilities
from wkhost.plugin_host.predicates import compile_globs
from wkhost.types import ChannelType, Message

_RESERVED_PREFIX = "____"
"""Uids of the server's own."""
_PERSON = int(ChannelType.PERSON)


class Grants:
    """Raises GrpcError (PERMISSION_DENIED, naming the grant) for what is not granted."""

    def __init__(self, capabilities: Capabilities, is_system_uid: Callable[[str], bool]) -> None:
        self._capabilities = capabilities
        self._is_system_uid = is_system_uid
        self._named = frozenset(capabilities.send_as)
        self._send_as = compile_globs(capabilities.send_as)
        self._scopes = [_compile_scope(scope) for scope in capabilities.messages_read]

    def need(self, name: str) -> int:
        """Return the value of a capability that is a number or a flag; 0 and false are refused."""
        value: int = getattr(self._capabilities, name)
        if not value:
            raise _denied(name, "not granted")
        return value

    def need_send_as(self, uid: str) -> None:
        """A pattern never covers a system uid; that one must be named."""
        if uid in self._named:
            return
        reserved = uid.startswith(_RESERVED_PREFIX) or self._is_system_uid(uid)
        granted = bool(self._named) and (self._send_as is None or self._send_as(uid))
        if reserved or not granted:
            raise _denied("send_as", f"not granted for {uid[:80]!a}")

    def need_any_read(self) -> None:
        if not self._scopes:
            raise _denied("messages_read", "not granted")

    def need_read(self, channel_id: str, channel_type: int) -> None:
        self.need_any_read()
        if not self._covers(channel_id, channel_type):
            raise _denied("messages_read", f"not granted for {channel_type}:{channel_id[:80]!a}")

    def may_read(self, message: Message) -> bool:
        return self._covers(message.channel_id, message.channel_type)

    def _covers(self, channel_id: str, channel_type: int) -> bool:
        for wanted_type, matches in self._scopes:
            if wanted_type is not None and wanted_type != channel_type:
                continue
            if matches is None:
                return True
            # A person chat is granted through one of its participants.
            names = _participants(channel_id) if channel_type == _PERSON else (channel_id,)
            if any(matches(name) for name in names):
                return True
        return False


def _compile_scope(scope: str) -> tuple[int | None, Callable[[str], bool] | None]:
    kind, _, pattern = scope.partition(":")
    return (None if kind == "*" else int(kind)), compile_globs((pattern,))


def _participants(channel_id: str) -> Iterator[str]:
    """Yield both sides of every way to read the id, since uids may hold the separator too."""
    at = channel_id.find("@")
    while at >= 0:
        yield channel_id[:at]
        yield channel_id[at + 1 :]
        at = channel_id.find("@", at + 1)


def _denied(name: str, text: str) -> GrpcError:
    return GrpcError(StatusCode.PERMISSION_DENIED, f"capabilities.{name}: {text}")
