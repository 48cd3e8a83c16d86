"""A certificate that WSS can listen with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.integration.gateway.certificate import write_certificate
from tests.integration.gateway.kit import ANY_PORT
from wkhost.gateway.settings import GatewaySettings


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with certificate and key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    write_certificate(path, "one")
    return path


@pytest.fixture
def all_transports(certificate: Path) -> GatewaySettings:
    return GatewaySettings(
        tcp=ANY_PORT, ws=ANY_PORT, wss=ANY_PORT, wss_certificate=str(certificate)
    )


@pytest.fixture(autouse=True)
def _only_warnings() -> Iterator[None]:
    """Keep the logs of faults made on purpose short."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.reset_defaults()
