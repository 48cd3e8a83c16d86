"""Which requests are recorded, and that no value of a setting or a secret is."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from wkhost.link import contract as c
from wkhost.plugin_host.audit_events import describe

CANARY = "canary-77e1"
CHANGES: list[c.PluginRequest] = [
    c.InstallPlugin("source", digest="d", granted=["send_as:x"], withhold=["token"]),
    c.UpgradePlugin("no", "d", ["send_as:x"]),
    c.RollbackPlugin("no", "1.0.0"),
    c.GrantPlugin("no", "token", granted=True),
    c.PluginAction("no", "disable"),
    c.SetPluginConfig("no", {"name": CANARY}, ["other"], reload=True),
    c.SetPluginSecret("no", "key", CANARY),
]


@pytest.mark.parametrize("request_type", get_args(c.PluginRequest))
def test_every_request_is_a_question_or_recorded(request_type: type) -> None:
    name = request_type.__name__
    changes = {type(change).__name__ for change in CHANGES}
    assert name.startswith(("Get", "List", "Inspect")) != (name in changes)


@pytest.mark.parametrize("request_", CHANGES, ids=lambda each: type(each).__name__)
def test_a_change_is_told_without_values(request_: c.PluginRequest) -> None:
    described = describe(request_)
    assert described is not None
    assert CANARY not in json.dumps(described)
    assert CANARY not in repr(request_) or isinstance(request_, c.SetPluginConfig)


def test_a_removed_secret_is_told_apart() -> None:
    assert describe(c.SetPluginSecret("no", "key", None)) == (
        "secret",
        "no",
        {"key": "key", "value": "removed"},
    )
