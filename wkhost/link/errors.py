"""What may go wrong between a link's two ends. What a request itself answers is in the contract."""

from __future__ import annotations

from wkhost.errors import RemoteProtocolError, WkhostError


class LinkError(WkhostError):
    """Root of the link's errors."""


class LinkLostError(LinkError):
    """The link broke, or gave no answer in time, while a request was on its way.

    `sent` false: the request never left, so it had no effect. True: its fate is unknown.
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class LinkBusyError(LinkError):
    """Too many requests or bytes wait on the link already; this one was not sent."""


class LinkRefusedError(LinkError):
    """The server turned the peer away at the handshake; the text says why."""


class NoServerError(LinkError):
    """No server answers for this data directory."""


class LinkProtocolError(RemoteProtocolError, LinkError):
    """The peer's bytes are not the link's protocol; the connection must be closed."""
