"""Samples -> the classic text format of Prometheus. Runs in the API worker, never in the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from wkhost.metrics.definitions import COUNTER, GUIDE, HISTOGRAM, METRICS, OPERATIONS, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Number = tuple[Sequence[str], float]
Histogram = tuple[Sequence[str], Sequence[int], float]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def render(
    numbers: Mapping[str, Iterable[Number]], histograms: Mapping[str, Iterable[Histogram]]
) -> bytes:
    """Return the exposition of all metrics.

    One without labels that has no sample is 0, so that a chart finds every name from the start.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(numbers, histograms))
    return generate_latest(registry)


class _Samples(Collector):
    def __init__(
        self,
        numbers: Mapping[str, Iterable[Number]],
        histograms: Mapping[str, Iterable[Histogram]],
    ) -> None:
        self._numbers = numbers
        self._histograms = histograms

    def collect(self) -> Iterator[Family]:
        for metric in METRICS.values():
            if metric.kind == HISTOGRAM:
                yield self._histogram(metric)
            else:
                yield self._number(metric)

    def _number(self, metric: Metric) -> Family:
        make = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
        family = make(metric.name, metric.help, labels=metric.labels)
        samples = list(self._numbers.get(metric.name, ())) or _zeros(metric)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family

    def _histogram(self, metric: Metric) -> Family:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        empty = [0] * (len(metric.bounds) + 1)
        samples = list(self._histograms.get(metric.name, ())) or [
            (labels, empty, 0.0) for labels, _ in _zeros(metric)
        ]
        for labels, counts, total in samples:
            family.add_metric(labels, buckets=_cumulative(metric, counts), sum_value=total)
        return family


def _zeros(metric: Metric) -> list[Number]:
    if not metric.labels:
        return [((), 0.0)]
    if metric in GUIDE:
        return [((op,), 0.0) for op in OPERATIONS if metric.kind != HISTOGRAM or op != "read"]
    return []


def _cumulative(metric: Metric, counts: Sequence[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound, added in zip((*map(_text, metric.bounds), "+Inf"), counts, strict=True):
        count += added
        buckets.append((bound, float(count)))
    return buckets


def _text(bound: float) -> str:
    return str(float(bound))
