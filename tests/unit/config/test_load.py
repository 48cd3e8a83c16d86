"""Settings: sources and their order, spellings, kinds, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from wkhost.config import Address, Settings, load_settings
from wkhost.config.known import UNUSED_GROUPS, UNUSED_KEYS
from wkhost.config.load import variable_of
from wkhost.config.places import PLACES
from wkhost.config.values import InitNode, Raw
from wkhost.errors import ConfigError


class Write(Protocol):
    def __call__(self, text: str, name: str = "wk.yaml") -> Path: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_text(text: str, name: str = "wk.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write_text


def load(file: Path | None = None, **flags: Raw) -> Settings:
    settings, warnings = load_settings(file, {}, flags)
    assert warnings == []
    return settings


def mistake(text: str, write: Write) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(text), {}, {})
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_without_any_source_the_documented_defaults_hold() -> None:
    settings = load()
    assert settings == Settings()
    assert settings.addr == Address("tcp", "0.0.0.0", 5100)
    assert str(settings.ws_addr) == "ws://0.0.0.0:5200"
    assert settings.wss_addr is None
    assert str(settings.http_addr) == "0.0.0.0:5001"
    assert settings.data_path == Path("wkhost-data/data").absolute()
    assert settings.plugin_path == Path("wkhost-data/plugins").absolute()
    assert (settings.connect_timeout_s, settings.conn_idle_time_s) == (30.0, 180.0)
    assert settings.whitelist_off_of_person
    assert settings.plugin.use is None


def test_later_sources_win_over_earlier_ones(write: Write) -> None:
    file = write("connectTimeout: 1s\nconnIdleTime: 1m\nmode: test")
    environ = {"WK_CONNIDLETIME": "2m", "WK_MODE": "bench", "WK_CONFIG": "ignored", "HOME": "/"}
    settings, warnings = load_settings(file, environ, {"mode": "DEBUG"})
    assert warnings == []
    assert settings.connect_timeout_s == 1.0
    assert settings.conn_idle_time_s == 120.0
    assert settings.mode == "debug"


def test_nested_dotted_and_any_case_spell_the_same_key(write: Write) -> None:
    for text in ("cluster:\n  nodeId: 7", "Cluster.NODEID: 7", '{"cluster": {"nodeid": 7}}'):
        assert load(write(text)).cluster.node_id == 7
    toml = write("[cluster]\nnodeId = 7\n[messageRetry]\ninterval = '5s'", "wk.toml")
    assert load(toml).cluster.node_id == 7
    assert load(toml).message_retry.interval_s == 5.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1h30m", 5400), ("30d", 2592000), ("1.5s", 1.5), ("1m 1s", 61)],
)
def test_durations_are_read_as_go_writes_them_and_days_too(
    text: str, seconds: float, write: Write
) -> None:
    assert load(write(f"connectTimeout: {text}")).connect_timeout_s == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("64MB", 64 << 20), ("64 MiB", 64 << 20), ("4096", 4096), ("1g", 1 << 30)]
)
def test_sizes_take_units_and_plain_numbers(text: str, size: int, write: Write) -> None:
    assert load(write(f"db:\n  memTableSize: {text}")).db.mem_table_bytes == size


def test_zero_and_empty_mean_the_default(write: Write) -> None:
    text = (
        'addr: ""\nmode:\nmanagerUID: ~\nconnectTimeout: 0\nconnIdleTime: 0s\n'
        "cluster: {nodeId: 0}\nmessageRetry:\ndb:\n  maxOpenFiles: 0\nplugin: {use: []}\n"
        'demo.addr: ""'
    )
    assert load(write(text)) == Settings()


@pytest.mark.parametrize("word", ["false", "False", "0", "off", "no", "'false'"])
def test_booleans_can_be_set_to_false(word: str, write: Write) -> None:
    assert not load(write(f"whitelistOffOfPerson: {word}")).whitelist_off_of_person
    assert not load(write(f"plugin:\n  on: {word}")).plugin.on


@pytest.mark.parametrize(
    "text",
    [
        'cluster:\n  initNodes:\n    - "1001@a:11110"\n    - "1002@b"',
        'cluster:\n  initNodes:\n    1001: "a:11110"\n    "1002": b',
        'cluster.initNodes: "1001@a:11110 1002@b"',
    ],
)
def test_init_nodes_are_a_list_a_map_or_text(text: str, write: Write) -> None:
    settings, warnings = load_settings(write(text), {}, {})
    assert settings.cluster.init_nodes == (InitNode(1001, "a", 11110), InitNode(1002, "b", 0))
    assert len(warnings) == 1
    assert "cluster.initNodes" in warnings[0]


def test_manager_wins_over_monitor_in_either_order(write: Write) -> None:
    both = ["monitor: {addr: '0.0.0.0:1'}", "manager: {addr: '0.0.0.0:2'}"]
    for lines in (both, both[::-1]):
        settings, _ = load_settings(write("\n".join(lines)), {}, {})
        assert settings.manager.addr.port == 2
    settings, _ = load_settings(write(both[0]), {}, {})
    assert settings.manager.addr.port == 1


def test_webhook_takes_both_spellings(write: Write) -> None:
    settings, _ = load_settings(
        write("webhook:\n  httpUrl: http://h/e\n  events: [user.connect, message.send]"), {}, {}
    )
    assert settings.webhook.http_addr == "http://h/e"
    assert settings.webhook.focus_events == ("user.connect", "message.send")


@pytest.mark.parametrize("text", ["plugin:\n  use: [a, b]", "plugin.use: a,b", "plugin.use: a b"])
def test_plugin_use_is_a_list_or_text(text: str, write: Write) -> None:
    assert load(write(text)).plugin.use == ("a", "b")


@pytest.mark.parametrize(
    "text", ["tcp://[::1]:5100", "tcp://:0", "127.0.0.1:5100", "TCP://h:65535"]
)
def test_addresses_are_read_with_and_without_scheme(text: str, write: Write) -> None:
    assert load(write(f"addr: '{text}'")).addr.scheme == "tcp"


@pytest.mark.parametrize("key", [*UNUSED_KEYS, *(f"{each}.anything" for each in UNUSED_GROUPS)])
@pytest.mark.parametrize("value", ["5", "[a: 1]", "{x: {y: z}}", "false"])
def test_a_listed_key_without_use_gives_one_warning_that_names_it(
    key: str, value: str, write: Write
) -> None:
    settings, warnings = load_settings(write(f"{key}: {value}"), {variable_of(key): "x"}, {})
    assert settings == Settings()
    assert len(warnings) == 1
    assert key.casefold() in warnings[0].casefold()


def test_a_setting_nothing_acts_on_yet_warns_and_no_other_does() -> None:
    for place in PLACES:
        for key in (place.spec.key, *place.spec.aliases):
            value = {"address": "1.2.3.4:5", "nodes": "1@h", "duration": "2s"}.get(
                place.spec.kind.name, "true" if place.spec.kind.name == "boolean" else "17"
            )
            value = {"mode": "debug", "logger.level": "2", "plugin.sandbox": "auto"}.get(
                key, "2000" if key == "plugin.firstUid" else value
            )
            _, warnings = load_settings(None, {variable_of(key): value}, {})
            about_key = [each for each in warnings if "does not use it" in each]
            assert len(about_key) == (0 if place.spec.used else 1), key
            assert all(key in each for each in about_key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster:\n  nodeld: 1", ["cluster.nodeld", "line 2", "did you mean cluster.nodeId?"]),
        ("clutser:\n  nodeId: 1", ["clutser.nodeId", "did you mean cluster.nodeId?"]),
        ("nodeId: 1", ["nodeId", "did you mean cluster.nodeId?"]),
        ("zzz: 1", ["zzz"]),
        ("zzz: {}", ["zzz"]),
        ("cluster.nodeId: 1024", ["cluster.nodeId", "1024", "1 to 1023"]),
        ("cluster.nodeId: -1", ["cluster.nodeId", "-1", "1 to 1023"]),
        ("cluster: 5", ["cluster", "'5'", "group of settings"]),
        ("connectTimeout: 30", ["connectTimeout", "'30'", "duration"]),
        ("connectTimeout: -1s", ["connectTimeout", "duration"]),
        ("tokenAuthOn: maybe", ["tokenAuthOn", "'maybe'", "true or false"]),
        ("addr: tcp://1.2.3.4", ["addr", "tcp://0.0.0.0:5100"]),
        ("addr: ws://1.2.3.4:1", ["addr", "tcp://0.0.0.0:5100"]),
        ("addr: 1.2.3.4:70000", ["addr", "70000"]),
        ("addr: [a]", ["addr", "expected an address"]),
        ("mode: fast", ["mode", "'fast'", "debug, release, bench, test"]),
        ("db.memTableSize: 64XB", ["db.memTableSize", "64XB", "size"]),
        ("cluster.initNodes: [1001]", ["cluster.initNodes", "1001@host:11110"]),
        ("cluster.initNodes: ['1@a', '1@b']", ["cluster.initNodes", "each once"]),
        ("addr: a:1\naddr: b:2", ["addr", "twice", "line 1", "line 2"]),
        ("cluster: {nodeId: 1}\ncluster.nodeId: 1", ["cluster.nodeId", "twice"]),
        ("addr: [", ["wk.yaml", "YAML"]),
        ("- a", ["wk.yaml", "key: value"]),
        ("? [a]\n: b", ["key must be a word"]),
        ("addr: &x [*x]", ["nested deeper"]),
        ("wssConfig: {certFile: /no/cert, keyFile: /no/key}", ["wssConfig.certFile", "/no/cert"]),
    ],
)
def test_each_mistake_is_one_sentence_that_names_key_value_and_expectation(
    text: str, words: list[str], write: Write
) -> None:
    sentence = mistake(text, write)
    for word in words:
        assert word in sentence


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content in (("missing.yaml", None), ("binary.yaml", b"\xff"), ("bad.toml", b"a b")):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            load_settings(file, {}, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, {}, {})


def test_unknown_variables_and_flags_are_refused() -> None:
    with pytest.raises(ConfigError, match="WK_CLUSTER_NODEIDD; did you mean WK_CLUSTER_NODEID"):
        load_settings(None, {"WK_CLUSTER_NODEIDD": "1"}, {})
    with pytest.raises(ConfigError, match=r"WK_CLUSTER_NODEID: cluster[.]nodeId is 'x'"):
        load_settings(None, {"WK_CLUSTER_NODEID": "x"}, {})
    with pytest.raises(ConfigError, match="command line: unknown setting adr; did you mean addr"):
        load_settings(None, {}, {"adr": "x"})


def test_wss_listens_only_with_a_certificate(tmp_path: Path) -> None:
    settings, warnings = load_settings(None, {"WK_WSSADDR": "wss://0.0.0.0:5210"}, {})
    assert settings.wss_addr is None
    assert len(warnings) == 1
    assert "wssConfig.certFile" in warnings[0]

    pem = tmp_path / "cert.pem"
    pem.touch()
    environ = {"WK_WSSCONFIG_CERTFILE": str(pem), "WK_WSSCONFIG_KEYFILE": str(pem)}
    settings, warnings = load_settings(None, environ, {"wssAddr": "wss://0.0.0.0:5210"})
    assert settings.wss_addr == Address("wss", "0.0.0.0", 5210)
    assert warnings == []
    settings, warnings = load_settings(None, environ, {})
    assert settings.wss_addr is None
    assert ["wssAddr is empty" in each for each in warnings] == [True]


def test_the_manager_token_is_not_shown() -> None:
    settings = load(managerToken="hunter2")
    assert settings.manager_token == "hunter2"
    assert "hunter2" not in repr(settings)
