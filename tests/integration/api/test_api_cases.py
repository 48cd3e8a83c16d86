"""The applicable HTTP cases against a real API worker over a fake kernel service."""

from __future__ import annotations

from tests.kit.api_server import serve_api
from tests.kit.http_case_runs import applicable_cases, failures, manager_token_cases


async def test_every_applicable_case_holds() -> None:
    cases = applicable_cases()
    assert len(cases) > 75
    async with serve_api() as api:
        assert await failures(cases, api.base) == []


async def test_the_cases_of_the_manager_token_hold() -> None:
    cases = manager_token_cases()
    assert cases
    async with serve_api(manager_token="secret") as api:
        assert await failures(cases, api.base, "secret") == []
