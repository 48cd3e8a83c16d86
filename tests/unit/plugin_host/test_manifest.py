"""plugin.toml: every error at once, each naming its field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.errors import PluginError
from wkhost.hooks.chain import Stage
from wkhost.hooks.verdict import Policy
from wkhost.plugin_host.config_schema import merge_config
from wkhost.plugin_host.manifest import parse_manifest

SMALL = b'[plugin]\nno = "echo"\nversion = "1.0.0"\n[run]\nmain = "main.py"\n'


def test_the_smallest_manifest_has_the_written_defaults() -> None:
    manifest = parse_manifest(SMALL + b"[hooks.send]\n[hooks.user_get]\n[hooks.persist_after]\n")
    assert (manifest.no, manifest.version, manifest.main) == ("echo", "1.0.0", "main.py")
    assert (manifest.stage, manifest.priority) == (Stage.TRANSFORM, 0)
    send, user_get = manifest.hooks["send"], manifest.hooks["user_get"]
    assert (send.policy, send.payload, send.hold_ms) == (Policy.CLOSED, False, 2000)
    assert (user_get.policy, user_get.login_policy) == (Policy.OPEN, Policy.CLOSED)
    assert not manifest.hooks["persist_after"].from_beginning
    assert manifest.capabilities.send_as == ()
    assert manifest.capabilities.messages_read == ()


def test_all_fields_are_read() -> None:
    manifest = parse_manifest(
        b"""
        [plugin]
        no = "guard.one"
        version = "2"
        stage = "guard"
        priority = 5
        before = ["b"]
        after = ["a"]
        [run]
        command = ["node", "main.js"]
        [hooks.send]
        policy = "hold"
        hold_ms = 100
        payload = true
        channel_types = [2]
        uids = ["bot_*"]
        channels = ["team-*"]
        payload_types = [1, 2]
        min_bytes = 1
        max_bytes = 9
        [hooks.persist_after]
        from = "beginning"
        [capabilities]
        send_as = ["bot"]
        send_rate = 3
        messages_read = ["2:team-*"]
        kv_bytes = 10
        [config]
        words = ["x"]
        [schema.words]
        type = "list"
        max = 3
        """
    )
    send = manifest.hooks["send"]
    assert (send.policy, send.hold_ms, send.channel_types) == (Policy.HOLD, 100, (2,))
    assert (send.uids, send.channels, send.payload_types) == (("bot_*",), ("team-*",), (1, 2))
    assert manifest.hooks["persist_after"].from_beginning
    assert manifest.command == ("node", "main.js")
    assert manifest.capabilities.messages_read == ("2:team-*",)
    assert manifest.config == {"words": ["x"]}


def test_every_error_is_told_at_once_with_its_field() -> None:
    with pytest.raises(PluginError) as caught:
        parse_manifest(
            b"""
            [plugin]
            no = "Echo!"
            stage = "first"
            priority = "high"
            colour = 1
            [run]
            main = "../main.py"
            [hooks.send]
            policy = "maybe"
            channel_types = [0, "x"]
            [hooks.sendd]
            [hooks.receive]
            policy = "hold"
            [capabilities]
            messages_read = ["everything"]
            kv_bytes = -1
            [limits]
            memory_mb = 1
            calls_per_s = 10001
            """
        )
    text = str(caught.value)
    for place in (
        "plugin.no:",
        "plugin.version: missing",
        "plugin.stage: expected one of guard, transform, seal, observe",
        "plugin.priority:",
        "plugin.colour: unknown field",
        "run.main: expected a path inside",
        "hooks.send.policy:",
        "hooks.send.channel_types[0]:",
        "hooks.send.channel_types[1]:",
        "hooks.sendd: unknown hook",
        "hooks.receive.policy:",
        "capabilities.messages_read[0]:",
        "capabilities.kv_bytes:",
        "limits.memory_mb:",
        "limits.calls_per_s:",
    ):
        assert place in text


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (b"[run]\n", "exactly one"),
        (b'[run]\nmain = "a.py"\ncommand = ["b"]\n', "exactly one"),
        (b'[run]\nmain = "/etc/x.py"\n', "inside"),
    ],
)
def test_exactly_one_way_to_run_is_needed(run: bytes, what: str) -> None:
    with pytest.raises(PluginError, match=what):
        parse_manifest(b'[plugin]\nno = "a"\nversion = "1"\n' + run)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_garbage_is_a_plugin_error(data: bytes) -> None:
    with pytest.raises(PluginError):
        parse_manifest(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
    st.sampled_from(["plugin", "run", "hooks", "capabilities", "limits", "config", "schema"]),
)
def test_any_value_in_any_section_is_read_or_a_plugin_error(value: object, section: str) -> None:
    from wkhost.plugin_host.fields import Fields
    from wkhost.plugin_host.manifest import _build

    errors: list[str] = []
    _build(Fields({section: value}, "", errors))
    assert errors


def test_overrides_are_checked_against_schema_and_defaults() -> None:
    manifest = parse_manifest(
        SMALL
        + b'[config]\nlimit = 3\nname = "x"\n[schema.limit]\ntype = "integer"\nmin = 1\nmax = 5\n'
    )
    schema, defaults = manifest.schema, manifest.config
    assert merge_config(schema, defaults, {"limit": 5}) == {"limit": 5, "name": "x"}
    with pytest.raises(PluginError) as caught:
        merge_config(schema, defaults, {"limit": 9, "name": 4, "other": 1})
    assert "limit: expected at most 5" in str(caught.value)
    assert "name: expected a value of type text" in str(caught.value)
    assert "other: unknown setting" in str(caught.value)


def test_a_wrong_default_is_an_error_of_the_manifest() -> None:
    with pytest.raises(PluginError, match=r"config\.limit: expected a value of type integer"):
        parse_manifest(SMALL + b'[config]\nlimit = "x"\n[schema.limit]\ntype = "integer"\n')


@pytest.mark.parametrize("no", ["client", "http", "registry.json", "registry.lock", "A", "-a", ""])
def test_numbers_that_mean_something_else_are_refused(no: str) -> None:
    with pytest.raises(PluginError, match=r"plugin\.no: expected a-z"):
        parse_manifest(SMALL.replace(b'"echo"', f'"{no}"'.encode()))


@pytest.mark.parametrize("no", ["client2", "http.proxy", "registry", "a"])
def test_numbers_that_only_look_alike_are_fine(no: str) -> None:
    assert parse_manifest(SMALL.replace(b'"echo"', f'"{no}"'.encode())).no == no
