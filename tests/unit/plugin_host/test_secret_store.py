"""Secrets at rest: sealed, bound to their place, refused without a key."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from wkhost.errors import PluginError
from wkhost.plugin_host.secret_store import (
    CREDENTIAL,
    MAX_VALUE_BYTES,
    SecretKey,
    SecretStore,
    generate_key,
)

CANARY = "canary-5c1f0e"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "key"
    path.parent.mkdir()
    generate_key(path)
    return path


def store(
    tmp_path: Path, key_file: Path | None, environ: dict[str, str] | None = None
) -> SecretStore:
    data = tmp_path / "data"
    return SecretStore(data / "plugins", SecretKey(key_file, data, environ or {}))


def sealed_file(tmp_path: Path, no: str = "p") -> Path:
    return tmp_path / "data" / "plugins" / "_secrets" / f"{no}.json"


def test_a_value_comes_back_and_is_nowhere_plain(tmp_path: Path, key_file: Path) -> None:
    it = store(tmp_path, key_file)
    it.put("p", "key", CANARY)
    it.put("p", "other", "line\nΩ")
    assert it.open("p", ["key", "other", "unset"]) == {"key": CANARY, "other": "line\nΩ"}
    assert it.open("q", ["key"]) == {}
    assert set(it.set_at("p")) == {"key", "other"}
    data = sealed_file(tmp_path).read_bytes()
    for form in (
        CANARY.encode(),
        base64.b64encode(CANARY.encode()),
        CANARY.encode().hex().encode(),
    ):
        assert form not in data
    assert sealed_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_without_a_key_secrets_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"secret keygen PATH.*plugin\.secretKeyFile"):
        store(tmp_path, None).put("p", "key", CANARY)
    assert not sealed_file(tmp_path).exists()


def test_the_key_may_be_a_credential_of_the_service_manager(tmp_path: Path, key_file: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / CREDENTIAL).write_bytes(key_file.read_bytes())
    (folder / CREDENTIAL).chmod(0o440)
    it = store(tmp_path, None, {"CREDENTIALS_DIRECTORY": str(folder)})
    it.put("p", "key", CANARY)
    assert store(tmp_path, key_file).open("p", ["key"]) == {"key": CANARY}


def test_a_key_that_others_can_read_or_that_lies_in_the_data_is_refused(
    tmp_path: Path, key_file: Path
) -> None:
    key_file.chmod(0o640)
    with pytest.raises(PluginError, match="mode 0600"):
        store(tmp_path, key_file).put("p", "key", CANARY)
    inside = tmp_path / "data" / "key"
    inside.parent.mkdir(exist_ok=True)
    generate_key(inside)
    with pytest.raises(PluginError, match="inside the data directory"):
        store(tmp_path, inside).put("p", "key", CANARY)
    link = tmp_path / "link"
    link.symlink_to(inside)
    with pytest.raises(PluginError, match="inside the data directory"):
        store(tmp_path, link).put("p", "key", CANARY)
    with pytest.raises(PluginError, match="cannot be read"):
        store(tmp_path, tmp_path / "none").put("p", "key", CANARY)


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "ab" * 33])
def test_a_malformed_key_is_refused(tmp_path: Path, key_file: Path, text: str) -> None:
    key_file.write_text(text)
    with pytest.raises(PluginError, match="64 hexadecimal digits"):
        store(tmp_path, key_file).put("p", "key", CANARY)


def test_a_key_is_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(PluginError, match="not overwritten"):
        generate_key(key_file)
    assert key_file.read_bytes() == before


def test_another_key_is_told_apart_from_damage(tmp_path: Path, key_file: Path) -> None:
    store(tmp_path, key_file).put("p", "key", CANARY)
    other = tmp_path / "keys" / "other"
    generate_key(other)
    for act in (
        lambda: store(tmp_path, other).open("p", ["key"]),
        lambda: store(tmp_path, other).put("p", "second", "x"),
    ):
        with pytest.raises(PluginError, match="another key"):
            act()
    store(tmp_path, None).remove("p", "key")
    store(tmp_path, other).put("p", "key", "new")
    assert store(tmp_path, other).open("p", ["key"]) == {"key": "new"}


def test_a_sealed_value_cannot_be_moved_to_another_name_or_plugin(
    tmp_path: Path, key_file: Path
) -> None:
    it = store(tmp_path, key_file)
    it.put("p", "key", CANARY)
    file = json.loads(sealed_file(tmp_path).read_bytes())
    file["values"]["shown"] = file["values"]["key"]
    sealed_file(tmp_path).write_text(json.dumps(file))
    sealed_file(tmp_path, "q").write_text(json.dumps(file))
    for no, name in (("p", "shown"), ("q", "key")):
        with pytest.raises(PluginError, match="damaged"):
            it.open(no, [name])
    assert it.open("p", ["key"]) == {"key": CANARY}


@pytest.mark.parametrize("value", ["", "x" * (MAX_VALUE_BYTES + 1), "a\x00b", "\udcff"])
def test_values_have_bounds(tmp_path: Path, key_file: Path, value: str) -> None:
    with pytest.raises(PluginError, match="key: expected"):
        store(tmp_path, key_file).put("p", "key", value)


def test_what_is_removed_is_gone(tmp_path: Path, key_file: Path) -> None:
    it = store(tmp_path, key_file)
    it.put("p", "key", CANARY)
    it.remove("p", "key")
    assert it.open("p", ["key"]) == {}
    with pytest.raises(PluginError, match="not set"):
        it.remove("p", "key")
    it.put("p", "key", CANARY)
    it.forget("p")
    assert not sealed_file(tmp_path).exists()
