"""One extractor for plugin packages: a folder, .tar.gz or .zip into an empty staging folder.

Streams from one open descriptor and refuses, before writing it, every entry that a plugin package
has no business holding. Whatever is refused, the caller removes the staging folder whole.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from wkhost.errors import PluginError

MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
MAX_RATIO = 100
"""Unpacked bytes per packed byte; counted from 1 MiB on, small texts may pack better."""
MAX_NAME_BYTES = 512
_RATIO_FREE_BYTES = 1024 * 1024
_CHUNK = 256 * 1024
_MAX_PADDING = 1024 * 1024
"""Zeros that tar may write after the last entry."""
_SETID = stat.S_ISUID | stat.S_ISGID


class _Staging:
    """The folder being filled, with the checks that hold for all kinds of source."""

    def __init__(self, folder: Path, packed_bytes: int | None) -> None:
        self._folder = folder
        if packed_bytes is not None:
            self._ratio_limit = max(packed_bytes * MAX_RATIO, _RATIO_FREE_BYTES)
        else:
            self._ratio_limit = MAX_UNPACKED_BYTES
        self._entries = 0
        self._bytes = 0
        self._names: dict[str, str] = {}
        self._folders: set[str] = {""}

    def _claim(self, name: str) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise PluginError(f"package: more than {MAX_ENTRIES} entries")
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in self._names:
            other = self._names[folded]
            raise PluginError(f"package: {name!a} and {other!a} are the same name")
        self._names[folded] = name

    def add_folder(self, name: str) -> None:
        """Make a folder; one that files inside already made is no duplicate."""
        name = checked_name(name.rstrip("/") or name)
        if name not in self._folders and not _is_left_out(name):
            self._make_folders(name)

    def _make_folders(self, name: str) -> None:
        path = ""
        for part in name.split("/"):
            path = f"{path}/{part}" if path else part
            if path in self._folders:
                continue
            self._claim(path)
            self._folders.add(path)
            (self._folder / path).mkdir(mode=0o755)

    def add_file(self, name: str, source: IO[bytes], *, executable: bool) -> None:
        name = checked_name(name)
        if name in self._folders:
            raise PluginError(f"package: {name!a} is both a file and a folder")
        if _is_left_out(name):
            for _ in self._chunks(source):
                pass
            return
        parent = name.rpartition("/")[0]
        if parent:
            self._make_folders(parent)
        self._claim(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        mode = 0o755 if executable else 0o644
        try:
            target = os.open(self._folder / name, flags, mode)
        except OSError as error:
            raise PluginError(f"package: {name!a} cannot be written ({error.strerror})") from error
        with open(target, "wb") as file:
            for chunk in self._chunks(source):
                file.write(chunk)

    def _chunks(self, source: IO[bytes]) -> Iterator[bytes]:
        while chunk := source.read(_CHUNK):
            self._bytes += len(chunk)
            if self._bytes > MAX_UNPACKED_BYTES:
                raise PluginError(f"package: more than {MAX_UNPACKED_BYTES} bytes unpacked")
            if self._bytes > self._ratio_limit:
                raise PluginError(f"package: unpacks to more than {MAX_RATIO} times its size")
            yield chunk


def _is_left_out(name: str) -> bool:
    """Byte code is made at install from the sources that the digest covers, never brought along."""
    return "__pycache__" in name.split("/")


def checked_name(name: str) -> str:
    """Return the relative name of an entry as it is; raises PluginError for a bad one."""
    raw = name.encode("utf-8", "surrogateescape")
    shown = ascii(name[:80])
    if not name or name.startswith("/"):
        raise PluginError(f"package: {shown}: expected a relative name")
    if len(raw) > MAX_NAME_BYTES:
        raise PluginError(f"package: {shown}: name longer than {MAX_NAME_BYTES} bytes")
    if "\\" in name:
        raise PluginError(f"package: {shown}: backslash in a name")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Cf") for char in name):
        raise PluginError(f"package: {shown}: control or invalid character in a name")
    if unicodedata.normalize("NFC", name) != name:
        raise PluginError(f"package: {shown}: name is not in Unicode form NFC")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise PluginError(f"package: {shown}: empty, '.' or '..' part in a name")
        if len(part.encode()) > 255:
            raise PluginError(f"package: {shown}: part longer than 255 bytes")
    return name


def stage_package(source: Path, folder: Path) -> None:
    """Fill the empty `folder` from `source`. Raises PluginError at the first refusal."""
    try:
        if source.is_dir():
            _stage_folder(source, folder)
        elif source.is_file():
            with source.open("rb") as file:
                _stage_archive(file, source.name, folder)
        else:
            raise PluginError(f"{source}: expected a folder, a .tar.gz or a .zip")
    except OSError as error:
        raise PluginError(f"{source}: cannot be copied ({error.strerror or error})") from error


def _stage_archive(file: IO[bytes], name: str, folder: Path) -> None:
    staging = _Staging(folder, os.fstat(file.fileno()).st_size)
    magic = file.read(4)
    file.seek(0)
    try:
        if magic[:2] == b"\x1f\x8b":
            _stage_tar(file, staging)
        elif magic == b"PK\x03\x04":
            _stage_zip(file, staging)
        else:
            raise PluginError(f"{name}: expected a .tar.gz or .zip archive")
    except PluginError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as e:
        raise PluginError(f"{name}: damaged archive ({ascii(str(e))[:200]})") from e
    except Exception as error:
        # zlib and lzma raise errors of their own in the middle of a damaged stream.
        if type(error).__module__ not in ("zlib", "_lzma", "lzma", "gzip", "struct"):
            raise
        raise PluginError(f"{name}: damaged archive ({ascii(str(error))[:200]})") from error


def _stage_tar(file: IO[bytes], staging: _Staging) -> None:
    # tarfile's own reading of gzip streams never looks at the checksum.
    packed = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    _stage_tar_members(packed, staging)
    rest = 0
    while part := packed.read(_CHUNK):
        rest += len(part)
        if rest > _MAX_PADDING:
            raise PluginError("package: data after the end of the archive")


def _stage_tar_members(packed: IO[bytes], staging: _Staging) -> None:
    with tarfile.open(fileobj=packed, mode="r|", errors="surrogateescape") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isdir():
                if name not in ("", "."):
                    staging.add_folder(name)
                continue
            if not member.isreg():
                raise PluginError(f"package: {name!a}: only files and folders are allowed")
            if member.mode & _SETID:
                raise PluginError(f"package: {name!a}: has a setuid or setgid bit")
            content = archive.extractfile(member)
            assert content is not None
            staging.add_file(name, content, executable=bool(member.mode & 0o100))


def _stage_zip(file: IO[bytes], staging: _Staging) -> None:
    with zipfile.ZipFile(file) as archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            raise PluginError(f"package: more than {MAX_ENTRIES} entries")
        for info in archive.infolist():
            # ZipInfo cuts the name at a NUL byte; the original tells the truth.
            if info.orig_filename != info.filename:
                raise PluginError(f"package: {info.orig_filename[:80]!a}: bad name")
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.is_dir():
                staging.add_folder(info.filename)
                continue
            if kind not in (0, stat.S_IFREG):
                raise PluginError(f"package: {info.filename!a}: only files and folders are allowed")
            if mode & _SETID:
                raise PluginError(f"package: {info.filename!a}: has a setuid or setgid bit")
            if info.flag_bits & 1:
                raise PluginError(f"package: {info.filename!a}: is encrypted")
            with archive.open(info) as content:
                staging.add_file(info.filename, content, executable=bool(mode & 0o100))


def _stage_folder(source: Path, folder: Path) -> None:
    staging = _Staging(folder, None)
    root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, descriptor, mode in _walk(root, ""):
            if descriptor is None:
                staging.add_folder(name)
                continue
            with open(descriptor, "rb") as content:
                staging.add_file(name, content, executable=bool(mode & 0o100))
    finally:
        os.close(root)


def _walk(folder: int, prefix: str) -> Iterator[tuple[str, int | None, int]]:
    """Yield (name, descriptor or None for a folder, mode) below an open folder.

    Every step opens one name relative to its parent's descriptor and follows no link, so that
    nothing outside the folder is read, whatever changes meanwhile.
    """
    for entry in sorted(os.listdir(folder)):
        if entry in ("__pycache__", ".git"):
            continue  # a working folder's own business, and not of the package
        name = prefix + entry
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(entry, flags, dir_fd=folder)
        except OSError as error:
            raise PluginError(
                f"package: {name!a}: cannot be read, or is a link ({error.strerror})"
            ) from error
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            try:
                yield name, None, mode
                yield from _walk(descriptor, f"{name}/")
            finally:
                os.close(descriptor)
        elif not stat.S_ISREG(mode) or mode & _SETID:
            os.close(descriptor)
            raise PluginError(
                f"package: {name!a}: only plain files without setuid bits are allowed"
            )
        else:
            yield name, descriptor, mode
