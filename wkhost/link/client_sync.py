"""The link's blocking end, for the command line: one request at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

from wkhost.link.contract import LINK_PROTOCOL, OPERATOR, Request, Response
from wkhost.link.errors import LinkLostError, LinkProtocolError, LinkRefusedError
from wkhost.link.framing import (
    MAX_ITEM_BYTES,
    FrameReader,
    Hello,
    check_welcome,
    encode_item,
    pack_batches,
    pack_handshake,
    response_decoder,
)
from wkhost.link.runtime import find_link_socket, no_server

_READ_BYTES = 256 * 1024


class SyncLinkClient:
    """A connection to the server's link at `path`. Use it as a context manager.

    `timeout_s` bounds each request. Raises: OSError when nobody listens; LinkRefusedError when the
    server turns us away; LinkLostError when it does not answer the handshake.
    """

    def __init__(
        self, path: Path, *, role: str = OPERATOR, token: str = "", timeout_s: float = 30.0
    ) -> None:
        self._frames = FrameReader()
        self._bodies: list[bytes] = []
        self._decoder = response_decoder()
        self._next_number = 0
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
            self._write(pack_handshake(Hello(LINK_PROTOCOL, role, token)))
            check_welcome(self._read_body())
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> SyncLinkClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: Request) -> Response:
        """Ask and wait for the answer, which may be an `Error`.

        Raises: LinkLostError when the link breaks or `timeout_s` pass; the client is then closed.
        """
        number = self._next_number
        self._next_number += 1
        item = encode_item(number, request)
        if len(item) > MAX_ITEM_BYTES:
            raise LinkProtocolError(f"the request is longer than {MAX_ITEM_BYTES} bytes")
        try:
            self._write(pack_batches((item,)))
            while True:
                for answered, answer in self._decoder.decode(self._read_body()):
                    if answered == number:
                        return answer
        except BaseException:
            self.close()
            raise

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (TimeoutError, BrokenPipeError, ConnectionError) as error:
            raise LinkLostError("the server does not take the request", sent=True) from error

    def _read_body(self) -> bytes:
        while not self._bodies:
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError as error:
                text = f"no answer from the server within {self._timeout_s:g} s"
                raise LinkLostError(text, sent=True) from error
            except ConnectionError as error:
                raise LinkLostError("the server closed the link", sent=True) from error
            if not data:
                raise LinkLostError("the server closed the link", sent=True)
            self._bodies = self._frames.feed(data)
        return self._bodies.pop(0)


def connect_operator(data_dir: Path, *, timeout_s: float = 30.0) -> SyncLinkClient:
    """Connect as operator to the server that runs on `data_dir`.

    Raises: NoServerError, whose text helps, when none is running; LinkRefusedError when it is
    another user's; LinkError otherwise.
    """
    try:
        return SyncLinkClient(find_link_socket(data_dir), timeout_s=timeout_s)
    except (FileNotFoundError, ConnectionRefusedError):
        raise no_server(data_dir) from None
    except PermissionError as error:
        text = f"the server of {data_dir} belongs to another user; run this command as its owner"
        raise LinkRefusedError(text) from error
