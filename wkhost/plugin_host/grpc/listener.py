"""The Unix socket a plugin dials: who connects is checked before a byte is read."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

_SO_PEERPIDFD = 77
"""Linux 6.5 and later; not yet in the socket module. Source: include/uapi/asm-generic/socket.h."""
_UCRED = struct.Struct("3i")
MAX_PATH_BYTES = 107


class PeerCred(msgspec.Struct, frozen=True):
    """The process that connected, as the kernel recorded it at connect time.

    `pidfd` refers to that very process even if its pid is reused; None where the kernel has no
    SO_PEERPIDFD or the process is gone. Whoever holds the PeerCred closes it.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int | None

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


def listen_unix(path: Path) -> socket.socket:
    """A non-blocking listening socket at `path`, readable and writable by its owner only."""
    encoded = os.fsencode(path)
    if len(encoded) > MAX_PATH_BYTES:
        raise ValueError(f"socket path must be at most {MAX_PATH_BYTES} bytes: {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # Before bind the mode applies to the path that bind creates, so there is no open moment.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(encoded)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_cred(sock: socket.socket) -> PeerCred:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return PeerCred(pid, uid, gid, None)
    os.set_inheritable(pidfd, False)
    return PeerCred(pid, uid, gid, pidfd)


async def accept_one(
    listener: socket.socket, check: Callable[[PeerCred], bool]
) -> tuple[socket.socket, PeerCred]:
    """The first connection whose peer passes `check`.

    Others are closed unread, and the listener keeps waiting until the caller's deadline: an
    impostor that dials first gains nothing. On return, also by cancellation, the listener is
    closed and its path removed. `check` must not block.
    """
    path = listener.getsockname()
    try:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            cred = peer_cred(sock)
            accepted = False
            try:
                accepted = check(cred)
            finally:
                if not accepted:
                    cred.close()
                    sock.close()
            if accepted:
                sock.setblocking(False)
                return sock, cred
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
