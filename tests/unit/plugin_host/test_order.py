"""The order of plugins: stage, before/after, priority, number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.errors import PluginError
from wkhost.hooks.chain import Stage
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.order import order_plugins


def plugin(
    no: str,
    stage: Stage = Stage.TRANSFORM,
    priority: int = 0,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Manifest:
    return Manifest(
        no=no, version="1", stage=stage, priority=priority, before=before, after=after, main="m.py"
    )


def order(*manifests: Manifest) -> list[str]:
    return [place.no for place in order_plugins(manifests)]


def test_stage_comes_first_then_priority_then_number() -> None:
    assert order(
        plugin("c"),
        plugin("b", priority=5),
        plugin("a"),
        plugin("z", Stage.GUARD),
        plugin("o", Stage.OBSERVE, priority=99),
        plugin("s", Stage.SEAL),
    ) == ["z", "b", "a", "c", "s", "o"]


def test_before_and_after_beat_priority() -> None:
    assert order(plugin("a", priority=9, after=("b",)), plugin("b")) == ["b", "a"]
    assert order(plugin("a", priority=9), plugin("b", before=("a",))) == ["b", "a"]


def test_names_that_are_not_there_bind_nothing() -> None:
    assert order(plugin("a", after=("ghost",))) == ["a"]


def test_a_cycle_is_refused_and_named() -> None:
    with pytest.raises(PluginError, match="a before b before c before a"):
        order(plugin("a", before=("b",)), plugin("b", before=("c",)), plugin("c", before=("a",)))
    with pytest.raises(PluginError, match="a before a"):
        order(plugin("a", before=("a",)))


def test_a_wish_against_the_stages_is_refused() -> None:
    with pytest.raises(PluginError, match="seal wants seal before guard"):
        order(plugin("seal", Stage.SEAL, before=("guard",)), plugin("guard", Stage.GUARD))


def test_every_place_has_a_reason() -> None:
    places = order_plugins([plugin("a", priority=3, after=("b",)), plugin("b")])
    assert places[0].reason == "stage transform, before a, priority 0"
    assert places[1].reason == "stage transform, after b, priority 3"


NAMES = "abcdef"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Stage)),
            st.integers(-2, 2),
            st.lists(st.sampled_from(NAMES), max_size=2),
            st.lists(st.sampled_from(NAMES), max_size=2),
        ),
        max_size=6,
    )
)
def test_any_set_is_ordered_by_its_rules_or_refused(
    rows: list[tuple[Stage, int, list[str], list[str]]],
) -> None:
    manifests = [
        plugin(no, stage, priority, tuple(before), tuple(after))
        for no, (stage, priority, before, after) in zip(NAMES, rows, strict=False)
    ]
    try:
        places = order(*manifests)
    except PluginError:
        return
    assert sorted(places) == sorted(m.no for m in manifests)
    at = {no: index for index, no in enumerate(places)}
    for m in manifests:
        assert all(at[m.no] < at[other] for other in m.before if other in at)
        assert all(at[other] < at[m.no] for other in m.after if other in at)
        assert all(at[m.no] < at[o.no] for o in manifests if m.stage < o.stage)
    assert order(*reversed(manifests)) == places
