"""Plugins' secrets at rest: one sealed file per plugin, the key somewhere else.

Each value is sealed with AES-256-GCM under a fresh nonce and bound to its plugin and its name, so
that a value cannot be moved to where another plugin would be given it. The key is in a file outside
the data directory, or a credential of the service manager; it is read when it is needed and not
kept. Without one, secrets are refused: they are never stored plain.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wkhost.errors import PluginError

SECRETS_FOLDER = "_secrets"
"""In the plugins directory; no plugin can have this number."""
CREDENTIAL = "wkhost-secrets"
"""Name of the key among the credentials of the service manager."""
MAX_VALUE_BYTES = 16 * 1024
_FORMAT = 1
_NONCE_BYTES = 12
_KEY_BYTES = 32


class _Sealed(msgspec.Struct, frozen=True):
    nonce: bytes
    data: bytes
    set_at: float


class _File(msgspec.Struct, frozen=True):
    format: int
    key_id: str
    values: dict[str, _Sealed]


class SecretKey:
    """Where the key is: the file that the operator has named, else the credential, else nowhere.

    `outside` is the data directory, in which the key may not be.
    """

    def __init__(
        self, file: Path | None, outside: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        folder = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY", "")
        credential = Path(folder) / CREDENTIAL if folder else None
        self._named = file
        self._path = file or (
            credential if credential is not None and credential.exists() else None
        )
        self._outside = outside

    def read(self) -> bytes:
        """Return the key. Raises PluginError, with what to do when there is none."""
        path = self._path
        if path is None:
            raise PluginError(
                "secrets are refused without a key: make one with `wkhost plugin secret keygen "
                "PATH` outside the data directory and name it in plugin.secretKeyFile"
            )
        try:
            status = path.stat()
            text = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PluginError(f"the key of secrets {path} cannot be read ({error})") from error
        if path.resolve().is_relative_to(self._outside.resolve()):
            raise PluginError(
                f"the key of secrets {path} is inside the data directory, where a copy of the data "
                "would take it along; move it out"
            )
        # The service manager gives its credentials to the service's group at most.
        others = 0o077 if self._named is not None else 0o007
        if not stat.S_ISREG(status.st_mode) or status.st_mode & others:
            raise PluginError(f"the key of secrets {path}: expected a file of mode 0600")
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise PluginError(
                f"the key of secrets {path}: expected {2 * _KEY_BYTES} hexadecimal digits"
            )
        return key


def generate_key(path: Path) -> None:
    """Write a new key to a new file of mode 0600. Raises PluginError."""
    text = secrets.token_hex(_KEY_BYTES) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise PluginError(f"{path}: exists already; a key is not overwritten") from None
    except OSError as error:
        raise PluginError(f"{path}: cannot be written ({error.strerror})") from error
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class SecretStore:
    """The sealed files. All methods block for a few milliseconds and raise PluginError."""

    def __init__(self, plugins_dir: Path, key: SecretKey) -> None:
        self._folder = plugins_dir / SECRETS_FOLDER
        self._key = key

    def set_at(self, no: str) -> dict[str, float]:
        """Return the names of the secrets that have a value, with the time it was set."""
        file = self._read(no)
        return {} if file is None else {name: each.set_at for name, each in file.values.items()}

    def put(self, no: str, name: str, value: str) -> None:
        """Seal one value; durable when this returns."""
        data = value.encode("utf-8", "surrogateescape")
        if not 1 <= len(data) <= MAX_VALUE_BYTES or "\x00" in value:
            raise PluginError(f"{name}: expected 1 to {MAX_VALUE_BYTES} bytes without NUL")
        try:
            data.decode()
        except UnicodeDecodeError:
            raise PluginError(f"{name}: expected UTF-8") from None
        key = self._key.read()
        file = self._read(no)
        if file is not None and file.values and file.key_id != _key_id(key):
            raise self._wrong_key(no)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _Sealed(nonce, AESGCM(key).encrypt(nonce, data, _bound_to(no, name)), time.time())
        values = {} if file is None else file.values
        self._write(no, _File(_FORMAT, _key_id(key), {**values, name: sealed}))

    def remove(self, no: str, name: str) -> None:
        """Forget one value; needs no key."""
        file = self._read(no)
        if file is None or name not in file.values:
            raise PluginError(f"{no}: the secret {name} is not set")
        values = {each: sealed for each, sealed in file.values.items() if each != name}
        self._write(no, msgspec.structs.replace(file, values=values))

    def forget(self, no: str) -> None:
        """Remove all of a plugin that is uninstalled."""
        self._path(no).unlink(missing_ok=True)

    def open(self, no: str, names: list[str]) -> dict[str, str]:
        """Return the values of those of `names` that are set. The key is needed if any is."""
        file = self._read(no)
        wanted = {} if file is None else {n: file.values[n] for n in names if n in file.values}
        if file is None or not wanted:
            return {}
        key = self._key.read()
        if file.key_id != _key_id(key):
            raise self._wrong_key(no)
        cipher = AESGCM(key)
        found = {}
        for name, sealed in wanted.items():
            try:
                data = cipher.decrypt(sealed.nonce, sealed.data, _bound_to(no, name))
            except InvalidTag:
                raise PluginError(f"{no}: the secret {name} was damaged; set it again") from None
            found[name] = data.decode()
        return found

    def _wrong_key(self, no: str) -> PluginError:
        return PluginError(
            f"{no}: its secrets were sealed with another key; bring that key back, or remove them "
            "with `wkhost plugin secret unset` and set them again"
        )

    def _path(self, no: str) -> Path:
        return self._folder / f"{no}.json"

    def _read(self, no: str) -> _File | None:
        path = self._path(no)
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise PluginError(f"{path}: damaged ({error})") from error
        if file.format != _FORMAT:
            raise PluginError(f"{path}: expected format {_FORMAT}, got {file.format}")
        return file

    def _write(self, no: str, file: _File) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._folder / f"{no}.json.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as out:
            out.write(msgspec.json.encode(file))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._path(no))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _key_id(key: bytes) -> str:
    """Tell keys apart without telling anything about them."""
    return base64.b16encode(hashlib.sha256(b"wkhost secret key id\0" + key).digest()[:8]).decode()


def _bound_to(no: str, name: str) -> bytes:
    return f"wkhost plugin secret\0{no}\0{name}".encode()
