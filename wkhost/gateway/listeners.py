"""Listening sockets and the certificate of WSS."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from wkhost.errors import ConfigError
from wkhost.gateway.settings import Address, BoundAddresses, GatewaySettings

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Accept failed because of us: the connection stays in the backlog and is tried again later."""


class Listener:
    """One listening socket; `transport` is "tcp", "ws" or "wss"."""

    __slots__ = ("sock", "transport")

    def __init__(self, transport: str, address: Address, backlog: int) -> None:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.sock = socket.create_server((host, port), family=family, backlog=backlog)
        except OSError as e:
            reason = os.strerror(e.errno) if e.errno else str(e)
            where = f"{host or '*'}:{port}"
            raise ConfigError(f"cannot listen on {where} ({transport}): {reason}") from e
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        self.transport = transport

    @property
    def address(self) -> Address:
        name = self.sock.getsockname()
        return name[0], name[1]


def open_listeners(settings: GatewaySettings) -> list[Listener]:
    """Bind every address of `settings`, all or none. Raises ConfigError."""
    wanted = (("tcp", settings.tcp), ("ws", settings.ws), ("wss", settings.wss))
    opened: list[Listener] = []
    try:
        for transport, address in wanted:
            if address is not None:
                opened.append(Listener(transport, address, settings.backlog))
    except ConfigError:
        for listener in opened:
            listener.sock.close()
        raise
    return opened


def bound_addresses(listeners: list[Listener]) -> BoundAddresses:
    at = {listener.transport: listener.address for listener in listeners}
    return BoundAddresses(tcp=at.get("tcp"), ws=at.get("ws"), wss=at.get("wss"))


def load_certificate(settings: GatewaySettings) -> ssl.SSLContext:
    """Read the WSS certificate and its key. Raises ConfigError naming the file."""
    path, key = settings.wss_certificate, settings.wss_key
    if not path:
        raise ConfigError("wss needs a certificate: wss_certificate names no file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1
    try:
        context.load_cert_chain(path, key or None, password=_no_password)
    except OSError as e:  # ssl.SSLError is one, and the text of neither names the file
        files = f"{path} and {key}" if key else path
        raise ConfigError(f"wss certificate {files} cannot be used: {e}") from e
    return context


def _no_password() -> str:
    """Instead of a prompt on the terminal for a key that is encrypted."""
    raise ConfigError("the key of the wss certificate is encrypted; it must not be")
