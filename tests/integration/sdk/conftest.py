from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sdk.kit import TestHost


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., TestHost]]:
    """Make a test host; it and its plugin process end with the test."""
    hosts: list[TestHost] = []

    def make(**options: Any) -> TestHost:
        hosts.append(TestHost(tmp_path, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., TestHost]) -> TestHost:
    return make_host()
