"""The audit log: who changed what about plugins, and what plugins were denied.

Theory of operation. One JSON object a line, appended to `audit.jsonl` in a directory of its own.
Each record carries the hash of the one before (`prev`) and its own `hash`, the SHA-256 over `prev`
and the record's canonical JSON; `seq` counts all records ever. A full file becomes
`audit.<first seq>.jsonl` and the chain goes on in the next one; the oldest files go when there are
too many. `head.json` holds the first record that is kept and the newest one, so that a cut at
either end is found too. A record is synced before `append` returns, and before the head names it:
after a crash the log may be ahead of its head, never behind. A line that a crash has cut is removed
by the next append, which tells so in a record of its own.

The chain has no key: it shows damage and clumsy hands. Against someone who may rewrite the whole
directory, keep the newest hash (`wkhost plugin audit --verify` prints it) somewhere else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from wkhost.errors import PluginError
from wkhost.link.contract import Actor

AUDIT_FOLDER = "_audit"
"""In the plugins directory; no plugin can have this number."""
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_FILES = 8
"""Besides the one that is written."""
MAX_DETAILS_BYTES = 4 * 1024
NO_HASH = "0" * 64
"""What stands for the record before the first."""
_CURRENT = "audit.jsonl"
_HEAD = "head.json"


class Event(msgspec.Struct, frozen=True):
    """What is to be recorded. `details` are plain values; what plugins wrote in them is data."""

    actor: Actor
    action: str
    plugin: str = ""
    details: dict[str, Any] = {}


class Verified(msgspec.Struct, frozen=True):
    """What a check of the log found. `problem` is empty when all is well."""

    records: int
    first_seq: int
    last_seq: int
    last_hash: str
    problem: str = ""


class _Head(msgspec.Struct, frozen=True):
    first_seq: int = 1
    last_seq: int = 0
    last_hash: str = NO_HASH


class AuditLog:
    """Appends to and reads one directory. Methods block; several processes may append in turns."""

    def __init__(
        self,
        folder: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_FILES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self._current = folder / _CURRENT
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._now = now
        self._head = _Head()
        self._known_size = -1
        """Size of the current file after our last append; another size means another writer."""

    def append(self, events: list[Event]) -> None:
        """Record the events, durably when this returns. Raises OSError, PluginError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            repaired = self._catch_up()
            if repaired:
                cut = Event(events[0].actor, "audit_repaired", "", {"bytes_cut": repaired})
                events = [cut, *events]
            for event in events:
                self._rotate_if_full()
                self._write(event)
            self._save_head()

    def read(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the newest `limit` records, oldest first; lines that are no records are left out.

        `verify` is what tells of such lines.
        """
        found: list[dict[str, Any]] = []
        for path in reversed(list(files(self.folder))):
            records = [r for r in map(_decode, path.read_bytes().splitlines()) if r is not None]
            found = records + found
            if len(found) >= limit:
                break
        return found[-limit:] if limit else []

    # --- writing --------------------------------------------------------------------------------

    def _write(self, event: Event) -> None:
        head = self._head
        record: dict[str, Any] = {
            "seq": head.last_seq + 1,
            "time": self._now().isoformat(timespec="milliseconds"),
            "role": event.actor.role,
            "uid": event.actor.uid,
            "pid": event.actor.pid,
            "action": event.action,
            "plugin": event.plugin,
            "details": _bounded(event.details),
            "prev": head.last_hash,
        }
        record["hash"] = record_hash(record)
        data = _canonical(record) + b"\n"
        descriptor = os.open(self._current, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                # The next append cuts off what was written of it.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._current))
            os.fsync(descriptor)
            self._known_size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        self._head = _Head(head.first_seq, record["seq"], record["hash"])

    def _catch_up(self) -> int:
        """Learn where the chain ends; return the bytes of a torn last line that were cut off."""
        size = self._current.stat().st_size if self._current.exists() else 0
        if size == self._known_size:
            return 0
        head = self._read_head()
        cut = self._cut_torn_line() if size else 0
        for path in reversed(list(files(self.folder))):
            lines = path.read_bytes().splitlines()
            last = _decode(lines[-1]) if lines else None
            if last is not None:
                head = _Head(head.first_seq, last["seq"], last["hash"])
                break
            if lines:
                raise PluginError(f"{path}: the last line is no audit record")
        self._head = head
        return cut

    def _cut_torn_line(self) -> int:
        data = self._current.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole == len(data):
            return 0
        os.truncate(self._current, whole)
        return len(data) - whole

    def _rotate_if_full(self) -> None:
        if not self._current.exists() or self._current.stat().st_size < self._max_file_bytes:
            return
        with self._current.open("rb") as file:
            first = _decode(file.readline().rstrip(b"\n"))
        if first is None:
            raise PluginError(f"{self._current}: the first line is no audit record")
        self._current.rename(self.folder / f"audit.{first['seq']:012d}.jsonl")
        self._known_size = -1
        old = [path for path in files(self.folder) if path != self._current]
        for path in old[: -self._max_files]:
            following = old[old.index(path) + 1]
            self._head = _Head(_seq_of(following), self._head.last_seq, self._head.last_hash)
            # The head must not name what is gone, so it goes first.
            self._save_head()
            path.unlink()

    def _read_head(self) -> _Head:
        try:
            return msgspec.json.decode((self.folder / _HEAD).read_bytes(), type=_Head)
        except FileNotFoundError:
            return _Head()
        except msgspec.DecodeError as error:
            raise PluginError(f"{self.folder / _HEAD}: damaged ({error})") from error

    def _save_head(self) -> None:
        fresh = self.folder / f"{_HEAD}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self._head))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / _HEAD)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


# --- reading and checking ------------------------------------------------------------------------


def files(folder: Path) -> Iterator[Path]:
    """Yield the files of a log, oldest first."""
    yield from sorted(folder.glob("audit.[0-9]*.jsonl"))
    if (folder / _CURRENT).exists():
        yield folder / _CURRENT


def verify(folder: Path) -> Verified:
    """Check every record of the log in `folder`; the first thing that is wrong is told.

    Found: a changed, removed, inserted or reordered line anywhere, a removed file, a cut end.
    """
    log = AuditLog(folder)
    if not folder.is_dir():
        return Verified(0, 0, 0, NO_HASH)
    try:
        with log._locked():
            return _verify(folder, log._read_head())
    except PluginError as error:
        return Verified(0, 0, 0, NO_HASH, str(error))


def _verify(folder: Path, head: _Head) -> Verified:
    count = last_seq = 0
    first_seq, last_hash = head.first_seq, NO_HASH
    head_seen = head.last_seq == 0
    for path in files(folder):
        if path.name != _CURRENT and _seq_of(path) < head.first_seq:
            # A crash has kept it from being removed.
            continue
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            where = f"{path.name} line {number}"
            problem = ""
            record = _decode(line.removesuffix(b"\n"))
            if record is None or not line.endswith(b"\n"):
                problem = "is no audit record"
            elif record_hash(record) != record["hash"]:
                problem = "was changed: its hash does not fit its content"
            elif count == 0 and record["seq"] != head.first_seq:
                problem = f"has number {record['seq']}, expected {head.first_seq}: records before"
                problem += " it were removed"
            elif count and (record["seq"] != last_seq + 1 or record["prev"] != last_hash):
                problem = "does not follow the one before: records were removed or inserted"
            elif record["seq"] == head.last_seq and record["hash"] != head.last_hash:
                problem = "is not the record that the head names"
            if record is None or problem:
                return Verified(count, first_seq, last_seq, last_hash, f"{where} {problem}")
            count += 1
            last_seq, last_hash = record["seq"], record["hash"]
            head_seen = head_seen or last_seq == head.last_seq
    problem = "" if head_seen else f"ends at record {last_seq}, expected {head.last_seq} at least"
    return Verified(count, first_seq, last_seq, last_hash, problem)


def record_hash(record: dict[str, Any]) -> str:
    """Return the hash that a record must carry: over `prev` and all fields but `hash`."""
    content = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(str(record["prev"]).encode() + _canonical(content)).hexdigest()


def _canonical(value: Any) -> bytes:
    """Return the one JSON form of a value: sorted keys, ASCII, so control characters are escaped"""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _bounded(details: dict[str, Any]) -> dict[str, Any]:
    size = len(_canonical(details))
    return details if size <= MAX_DETAILS_BYTES else {"omitted": "too large", "bytes": size}


def _decode(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, if it is one in its canonical form."""
    try:
        record = json.loads(line)
        whole = (
            isinstance(record, dict)
            and isinstance(record["seq"], int)
            and isinstance(record["prev"], str)
            and isinstance(record["hash"], str)
            and _canonical(record) == line
        )
    except (ValueError, KeyError, RecursionError):
        return None
    return record if whole else None


def _seq_of(path: Path) -> int:
    return int(path.name.split(".")[1])
