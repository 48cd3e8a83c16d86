"""The applicable HTTP cases against a whole server: routes, link, kernel and store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.http_case_runs import applicable_cases, failures, manager_token_cases
from tests.kit.server import running_server

pytestmark = pytest.mark.e2e


async def test_every_applicable_case_holds_on_a_whole_server(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        assert await failures(applicable_cases(), server.api) == []


async def test_the_manager_token_guards_a_whole_server(tmp_path: Path) -> None:
    async with running_server(tmp_path, {"managerToken": "secret"}) as server:
        assert await failures(manager_token_cases(), server.api, "secret") == []
