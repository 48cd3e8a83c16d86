"""Who may connect to a plugin's socket, shown with real processes."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from wkhost.plugin_host.grpc import PeerCred, accept_one, listen_unix

DIAL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print(s.recv(10) == b"", flush=True)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wk") as folder:
        yield Path(folder) / "s"


def spawn_dialler(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DIAL, str(path)], stdout=subprocess.PIPE, text=True
    )


def mode_of(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


async def test_socket_is_for_its_owner_only_and_goes_away_once_used(path: Path) -> None:
    listener = listen_unix(path)
    assert mode_of(path) == 0o600
    with dial(path), trio.fail_after(5):
        sock, cred = await accept_one(listener, lambda cred: True)
        sock.close()
        cred.close()
    assert mode_of(path) is None


async def test_wrong_peer_is_closed_unread_and_the_right_one_still_gets_in(path: Path) -> None:
    listener = listen_unix(path)
    impostor = spawn_dialler(path)
    seen: list[int] = []

    def is_us(cred: PeerCred) -> bool:
        seen.append(cred.pid)
        return cred.pid == os.getpid()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def dial_after_the_impostor() -> None:
                def refused() -> str:
                    with impostor:
                        assert impostor.stdout is not None
                        return impostor.stdout.readline()

                assert await trio.to_thread.run_sync(refused) == "True\n"
                ours.append(dial(path))

            ours: list[socket.socket] = []
            nursery.start_soon(dial_after_the_impostor)
            sock, cred = await accept_one(listener, is_us)
    assert seen == [impostor.pid, os.getpid()]
    assert (cred.uid, cred.gid) == (os.getuid(), os.getgid())
    cred.close()
    sock.close()
    ours[0].close()


async def test_pidfd_names_the_process_that_dialled(path: Path) -> None:
    listener = listen_unix(path)
    peer = spawn_dialler(path)
    with peer, trio.fail_after(10):
        sock, cred = await accept_one(listener, lambda cred: True)
        assert cred.pid == peer.pid
        if cred.pidfd is None:
            sock.close()
            pytest.skip("this kernel has no SO_PEERPIDFD")
        assert not os.get_inheritable(cred.pidfd)
        assert select.select([cred.pidfd], [], [], 0)[0] == []
        sock.close()
        await trio.lowlevel.wait_readable(cred.pidfd)  # readable: the process has ended
        cred.close()


async def test_nobody_in_time_leaves_nothing_behind(path: Path) -> None:
    listener = listen_unix(path)
    with trio.move_on_after(0.01) as scope:
        await accept_one(listener, lambda cred: True)
    assert scope.cancelled_caught
    assert mode_of(path) is None
    assert listener.fileno() == -1


async def test_check_that_raises_closes_the_peer(path: Path) -> None:
    listener = listen_unix(path)

    def broken(cred: PeerCred) -> bool:
        raise LookupError("no such process")

    with dial(path) as sock, trio.fail_after(5):
        with pytest.raises(LookupError):
            await accept_one(listener, broken)
        assert sock.recv(1) == b""


def test_path_that_cannot_be_bound_is_named() -> None:
    with pytest.raises(ValueError, match="at most 107 bytes"):
        listen_unix(Path("/tmp") / ("x" * 110))
