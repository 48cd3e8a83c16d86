"""A server's and a client's protocol state joined without a wire."""

from __future__ import annotations

from wkhost.protocol.client import ClientConnection
from wkhost.protocol.connection import Form, ServerConnection
from wkhost.protocol.packets import Connect

NOW_MS = 1_700_000_000_000


def make_server(
    *, encryption: bool = True, jsonrpc_allowed: bool = True, max_frame_bytes: int = 1 << 20
) -> ServerConnection:
    return ServerConnection(
        encryption=encryption,
        jsonrpc_allowed=jsonrpc_allowed,
        node_id=1001,
        max_frame_bytes=max_frame_bytes,
    )


def logged_in(
    form: Form = Form.BINARY,
    *,
    version: int = 5,
    encryption: bool = True,
    max_frame_bytes: int = 1 << 20,
) -> tuple[ServerConnection, ClientConnection]:
    """Return both ends right after a successful login."""
    server = make_server(encryption=encryption, max_frame_bytes=max_frame_bytes)
    client = ClientConnection("u1", "token", form=form, version=version)
    (connect,) = server.receive(client.connect(NOW_MS))
    assert isinstance(connect, Connect)
    client.receive(server.accept(NOW_MS + 37))
    return server, client
