"""The parts of a manifest that lead out: hosts and secrets."""

from __future__ import annotations

import pytest

from wkhost.errors import PluginError
from wkhost.plugin_host.config_schema import secret_names
from wkhost.plugin_host.manifest import Manifest, parse_manifest

BASE = '[plugin]\nno = "p"\nversion = "1"\n[run]\nmain = "main.py"\n'


def parse(text: str) -> Manifest:
    return parse_manifest((BASE + text).encode())


def test_hosts_are_kept_in_their_normal_form() -> None:
    listed = '[capabilities]\negress = ["API.Example.com:443", "*.example.org:8443"]\n'
    targets = parse(listed).capabilities.egress
    assert [str(target) for target in targets] == ["api.example.com:443", "*.example.org:8443"]
    assert parse("").capabilities.egress == ()


@pytest.mark.parametrize("host", ["example.com", "*:443", "*.com:443", "a@b:1", "x:0", "ü.de:443"])
def test_a_wrong_host_is_named(host: str) -> None:
    with pytest.raises(PluginError, match=r"capabilities\.egress"):
        parse(f'[capabilities]\negress = ["{host}"]\n')


def test_secrets_are_declared_by_name() -> None:
    manifest = parse('[schema.key]\ntype = "text"\nsecret = true\n[schema.other]\ntype = "text"\n')
    assert secret_names(manifest.schema) == ["key"]


@pytest.mark.parametrize(
    "text",
    [
        '[schema.key]\ntype = "integer"\nsecret = true\n',
        '[schema.key]\ntype = "text"\nsecret = true\nchoices = ["a"]\n',
        '[schema.key]\ntype = "text"\nsecret = true\nmin = 3\n',
        '[schema.key]\ntype = "text"\nsecret = "yes"\n',
        '[config]\nkey = "x"\n[schema.key]\ntype = "text"\nsecret = true\n',
        '[schema.key]\n"$ref" = "https://example.com/schema"\n',
    ],
)
def test_a_wrong_declaration_is_refused(text: str) -> None:
    with pytest.raises(PluginError, match=r"key"):
        parse(text)
