"""The applicable HTTP cases as one run against a server, real or fake."""

from __future__ import annotations

import trio

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


def applicable_cases() -> list[Case]:
    """Return the cases of the default configuration that use nothing but our routes."""
    return [c for c in load_cases() if applicable(c, PATHS) and c["id"] not in LENIENT]


def manager_token_cases() -> list[Case]:
    """Return those that need a server with a manager token."""
    paths = PATHS | {"/user/onlinestatus"}
    return [c for c in load_cases() if applicable(c, paths, {"managerToken": "{token}"})]
