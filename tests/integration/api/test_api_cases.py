"""The applicable HTTP cases against a real API worker over a fake kernel service."""

from __future__ import annotations

import trio

from tests.kit.api_server import serve_api
from tests.kit.http_cases import Case, applicable, load_cases, run_case
from wkhost.api.routes import ROUTES

PATHS = frozenset(route.path for route in ROUTES)
LENIENT = frozenset({"send-header-bool"})
"""reference-strict cases in which this server takes more than the reference."""


async def failures(cases: list[Case], base: str, token: str = "") -> list[str]:
    found: list[str] = []

    async def run(case: Case) -> None:
        found.extend(await trio.to_thread.run_sync(lambda: run_case(case, base, token=token)))

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(run, case)
    return sorted(found)


async def test_every_applicable_case_holds() -> None:
    cases = [c for c in load_cases() if applicable(c, PATHS) and c["id"] not in LENIENT]
    assert len(cases) > 75
    async with serve_api() as api:
        assert await failures(cases, api.base) == []


async def test_the_cases_of_the_manager_token_hold() -> None:
    requires = {"managerToken": "{token}"}
    paths = PATHS | {"/user/onlinestatus"}
    cases = [case for case in load_cases() if applicable(case, paths, requires)]
    assert cases
    async with serve_api(manager_token="secret") as api:
        assert await failures(cases, api.base, "secret") == []
