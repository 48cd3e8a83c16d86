"""A timer for an epoll set, which itself counts in milliseconds: too coarse for an open loop.

`os.timerfd_create` came with Python 3.13; this asks the C library.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

_libc = ctypes.CDLL(None, use_errno=True)
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class Timer:
    """Readable from `set`'s moment on, until it is set again."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS))

    def fileno(self) -> int:
        return self._fd

    def set(self, after_s: float) -> None:
        """Make it readable after so many seconds, at once if that is 0 or less."""
        nanoseconds = max(1, int(after_s * 1e9))
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        # No interval, then the first time; both as seconds and nanoseconds.
        _checked(_libc.timerfd_settime(self._fd, 0, struct.pack("4l", 0, 0, seconds, rest), None))

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
