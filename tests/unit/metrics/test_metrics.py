"""What a scrape is told, and that the page tells all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wkhost.hooks.records import BOUNDS_S
from wkhost.hooks.verdict import Outcome
from wkhost.link.contract import EgressFigures, PluginFigures
from wkhost.metrics import page
from wkhost.metrics.definitions import (
    CALL_BOUNDS_S,
    COUNTER,
    GUIDE,
    HISTOGRAM,
    METRICS,
    STORE_BOUNDS_S,
)
from wkhost.metrics.render import render
from wkhost.node_metrics import plugin_numbers
from wkhost.store.statistics import BUCKETS_S

ROOT = Path(__file__).parents[3]


def samples(text: bytes) -> dict[str, float]:
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("metric", GUIDE, ids=lambda metric: metric.name)
def test_names_of_the_guide_are_there_before_anything_happened(metric: object) -> None:
    name = metric.name  # type: ignore[attr-defined]
    text = render({}, {}).decode()
    assert f"# TYPE {name} " in text
    assert any(line.startswith(name) for line in text.splitlines())


def test_gauges_whose_names_end_in_total_keep_their_names_in_the_classic_format() -> None:
    text = render({"wukongim_connections_total": [([], 7)]}, {}).decode()
    assert "# TYPE wukongim_connections_total gauge\nwukongim_connections_total 7.0\n" in text
    assert "# EOF" not in text


def test_histograms_are_cumulative_with_count_and_sum() -> None:
    counts = [0] * (len(CALL_BOUNDS_S) + 1)
    counts[1], counts[3], counts[-1] = 2, 1, 4
    name = "wukongim_plugin_call_duration_seconds"
    found = samples(render({}, {name: [(["p", "send", "1.0.0"], counts, 12.5)]}))
    labels = [("hook", "send"), ("plugin", "p"), ("version", "1.0.0")]

    def bucket(le: str) -> float:
        return found[f"{name}_bucket{sorted([*labels, ('le', le)])}"]

    assert [bucket(le) for le in ("0.0001", "0.00025", "0.001", "2.0", "+Inf")] == [0, 2, 3, 3, 7]
    assert found[f"{name}_count{labels}"] == 7
    assert found[f"{name}_sum{labels}"] == 12.5


def test_the_way_out_of_a_plugin_is_told_by_plugin_entry_and_reason() -> None:
    egress = EgressFigures(2, {"*.a.test:443": 5}, {"not_listed": 3}, {"idle": 1}, 10, 20)
    plugin = PluginFigures("p", "1", "running", 1, 1, 0, 0, 0.0, 0, 0, [], egress=egress)
    numbers: dict[str, list[tuple[list[str], float]]] = {}
    for name, labels, value in plugin_numbers(plugin, {"held": {}, "late_verdicts": {}}):
        numbers.setdefault(name, []).append((labels, value))
    found = samples(render(numbers, {}))
    name = "wukongim_plugin_egress_"
    assert found[name + "connections[('plugin', 'p')]"] == 2
    assert found[name + "accepted_total[('plugin', 'p'), ('target', '*.a.test:443')]"] == 5
    assert found[name + "refused_total[('plugin', 'p'), ('reason', 'not_listed')]"] == 3
    assert found[name + "ended_total[('plugin', 'p'), ('reason', 'idle')]"] == 1
    assert found[name + "bytes_total[('direction', 'sent'), ('plugin', 'p')]"] == 10
    assert found[name + "bytes_total[('direction', 'received'), ('plugin', 'p')]"] == 20


def test_a_label_value_cannot_leave_its_quotes() -> None:
    evil = 'p"} 1\nwukongim_messages_sent_total 99 #\\'
    text = render({"wukongim_plugin_up": [([evil], 1)]}, {})
    assert samples(text)[f"wukongim_plugin_up{[('plugin', evil)]}"] == 1
    assert samples(text)["wukongim_messages_sent_total[]"] == 0


def test_buckets_are_those_that_the_parts_count_in() -> None:
    assert CALL_BOUNDS_S == BOUNDS_S
    assert STORE_BOUNDS_S == BUCKETS_S
    for metric in METRICS.values():
        assert bool(metric.bounds) == (metric.kind == HISTOGRAM), metric.name
        assert metric.kind != COUNTER or metric.name.endswith("_total"), metric.name


def test_the_page_is_what_the_code_writes() -> None:
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == page.render()


def test_the_page_names_every_metric_and_every_outcome() -> None:
    text = page.render()
    assert all(f"| `{name}` |" in text for name in METRICS)
    assert all(outcome.value in text for outcome in Outcome)
