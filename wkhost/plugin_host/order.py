"""The order of plugins: stage, then before/after, then priority (larger first), then number.

Pure. A reason in plain words goes with every place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush

import msgspec

from wkhost.errors import PluginError
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.target import Target
from wkhost.plugin_host.manifest import DEFAULT_POLICIES, Manifest
from wkhost.plugin_host.predicates import compile_predicate


class Place(msgspec.Struct, frozen=True):
    no: str
    reason: str


def order_plugins(manifests: Iterable[Manifest]) -> list[Place]:
    """Return all plugins in the order they are asked.

    `before` and `after` bind plugins of the same stage; a name that is not among `manifests` binds
    nothing, one of another stage must agree with the stages. Raises PluginError naming the cycle,
    or the pair whose stages say the opposite.
    """
    by_no = {manifest.no: manifest for manifest in manifests}
    later = {no: set[str]() for no in by_no}
    for manifest in by_no.values():
        for first, second in _pairs(manifest, by_no):
            if by_no[first].stage > by_no[second].stage:
                raise PluginError(
                    f"order: {manifest.no} wants {first} before {second}, but stage "
                    f"{by_no[first].stage.name.lower()} comes after stage "
                    f"{by_no[second].stage.name.lower()}"
                )
            later[first].add(second)
    _refuse_cycle(later)
    return _sort(by_no, later)


def _pairs(manifest: Manifest, by_no: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    before = [(manifest.no, other) for other in manifest.before if other in by_no]
    after = [(other, manifest.no) for other in manifest.after if other in by_no]
    return before + after


def _refuse_cycle(later: Mapping[str, set[str]]) -> None:
    done: set[str] = set()
    for start in sorted(later):
        path: list[str] = []
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            no, leaving = stack.pop()
            if leaving:
                path.pop()
                done.add(no)
            elif no in path:
                cycle = [*path[path.index(no) :], no]
                raise PluginError(f"order: cycle {' before '.join(cycle)}")
            elif no not in done:
                path.append(no)
                stack.append((no, True))
                stack.extend((other, False) for other in sorted(later[no], reverse=True))


def _sort(by_no: Mapping[str, Manifest], later: Mapping[str, set[str]]) -> list[Place]:
    earlier = {no: {first for first in later if no in later[first]} for no in by_no}
    waiting = {no: len(firsts) for no, firsts in earlier.items()}
    free = [_rank(by_no[no]) for no, count in waiting.items() if count == 0]
    heapify(free)
    places: list[Place] = []
    while free:
        no = heappop(free)[2]
        places.append(Place(no, _reason(by_no[no], earlier[no], later[no])))
        for other in later[no]:
            waiting[other] -= 1
            if waiting[other] == 0:
                heappush(free, _rank(by_no[other]))
    return places


def _rank(manifest: Manifest) -> tuple[int, int, str]:
    return (manifest.stage.value, -manifest.priority, manifest.no)


def _reason(manifest: Manifest, earlier: set[str], later: set[str]) -> str:
    parts = [f"stage {manifest.stage.name.lower()}"]
    if earlier:
        parts.append(f"after {', '.join(sorted(earlier))}")
    if later:
        parts.append(f"before {', '.join(sorted(later))}")
    parts.append(f"priority {manifest.priority}")
    return ", ".join(parts)


def build_chain(
    number: int, manifests: Mapping[str, Manifest], target: Callable[[str], Target]
) -> Chain:
    """Return the snapshot of `manifests` in their order. Raises PluginError as `order_plugins`."""
    order = [place.no for place in order_plugins(manifests.values())]
    hooks: dict[str, tuple[Step, ...]] = {}
    for hook in DEFAULT_POLICIES:
        steps = []
        for no in order:
            spec = manifests[no].hooks.get(hook)
            if spec is not None:
                steps.append(
                    Step(
                        target=target(no),
                        policy=spec.policy,
                        matches=compile_predicate(spec),
                        hold_s=spec.hold_ms / 1000,
                        login_policy=spec.login_policy,
                    )
                )
        hooks[hook] = tuple(steps)
    return Chain(number=number, **hooks)
