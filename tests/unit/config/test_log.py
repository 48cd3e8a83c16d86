"""Logs: one line per record, JSON off a terminal, nothing can pass for another line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from wkhost.log import configure, level_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_off_a_terminal_each_record_is_one_json_object() -> None:
    out = io.StringIO()
    configure(logging.INFO, stream=out)
    structlog.get_logger("kernel").info("batch stored", rows=3, who="a\nb\x1b[2J")
    logging.getLogger("library").warning("from %s", "outside")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["event"] == "batch stored"
    assert first["rows"] == 3
    assert first["who"] == "a\\x0ab\\x1b[2J"
    assert first["level"] == "info"
    assert second["event"] == "from outside"


def test_on_a_terminal_records_are_key_value_and_stay_on_one_line() -> None:
    out = Terminal()
    configure(logging.INFO, stream=out)
    structlog.get_logger().info("started", addr="x\ny")
    (line,) = out.getvalue().splitlines()
    assert "started" in line
    assert "\\x0a" in line


def test_records_below_the_level_are_left_out() -> None:
    out = io.StringIO()
    configure(level_of(3, debug=True), stream=out)
    structlog.get_logger().info("quiet")
    logging.getLogger("x").info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(each)["event"] for each in out.getvalue().splitlines()] == ["loud"]


def test_line_numbers_and_exceptions_are_in_the_record() -> None:
    out = io.StringIO()
    configure(line_numbers=True, stream=out)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("failed")
    (record,) = map(json.loads, out.getvalue().splitlines())
    assert record["filename"] == "test_log.py"
    assert "ValueError: boom" in record["exception"]


def test_level_zero_depends_on_the_mode() -> None:
    assert level_of(0, debug=True) == logging.DEBUG
    assert level_of(0, debug=False) == logging.INFO
    assert level_of(4, debug=True) == logging.ERROR
