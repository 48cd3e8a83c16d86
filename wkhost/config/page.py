"""Writes docs/configuration.md: `python -m wkhost.config.page > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from wkhost.config.known import UNUSED_GROUPS, UNUSED_KEYS
from wkhost.config.load import variable_of
from wkhost.config.places import PLACES, Place

_HEAD = """\
# Configuration

This page is written by `python -m wkhost.config.page`; a test keeps it equal to the code.

A setting comes from, each winning over the one before: its default, the configuration file, the
environment, a flag of `wkhost run`. The file is named by `wkhost --config FILE`, else by the
variable `WK_CONFIG`, else it is `./wk.yaml` where there is one. It is YAML, JSON, or TOML by its
ending. Keys may be nested or dotted, in any case:

```yaml
cluster:
  nodeId: 7
messageRetry.interval: 30s
```

- **Environment**: `WK_` and the key in upper case, dots as underscores: `WK_CLUSTER_NODEID=7`.
- **Durations** are numbers with a unit: `500ms`, `30s`, `1h30m`, `30d`.
- **Sizes** are bytes, or have a unit of 1024 steps: `65536`, `64KB`, `64MB`.
- **Lists** are lists, or words separated by commas or spaces.
- Empty text and zero mean the default. Booleans can be set to `false`.
- An unknown key or a wrong value stops the start with one sentence that names it.
- A relative path is relative to the folder in which the server is started.
"""

_FLAGS = {
    "addr": "--addr",
    "wsAddr": "--ws-addr",
    "wssAddr": "--wss-addr",
    "httpAddr": "--http-addr",
    "rootDir": "--root-dir",
    "mode": "--mode",
    "plugin.use": "--plugins",
}


def _row(place: Place) -> str:
    spec = place.spec
    names = "<br>".join(f"`{name}`" for name in (spec.key, *spec.aliases))
    flag = f"<br>`{_FLAGS[spec.key]}`" if spec.key in _FLAGS else ""
    return (
        f"| {names} | `{variable_of(spec.key)}`{flag} | {spec.kind.name} "
        f"| {_default(place)} | {spec.doc} |"
    )


def _default(place: Place) -> str:
    value, kind = place.default, place.spec.kind.name
    if value is None or value in ("", ()):
        return ""
    if kind == "boolean":
        return "`true`" if value else "`false`"
    if kind == "duration":
        return f"`{value * 1000:g}ms`" if value < 1 else f"`{value:g}s`"
    if kind == "size" and value:
        shift, unit = next((s, u) for s, u in ((20, "MB"), (10, "KB"), (0, "")) if not value % 2**s)
        return f"`{value >> shift}{unit}`"
    return f"`{value}`"


def _table(title: str, places: list[Place]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| key | environment, flag | kind | default | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    yield from map(_row, places)
    yield ""


def render() -> str:
    """Return the page."""
    lines = [_HEAD]
    used = [place for place in PLACES if place.spec.used]
    top = [place for place in used if "." not in place.spec.key]
    lines.extend(_table("Top level", top))
    for group in dict.fromkeys(p.spec.key.rpartition(".")[0] for p in used if p not in top):
        lines.extend(_table(group, [p for p in used if p.spec.key.rpartition(".")[0] == group]))
    lines.append("## Accepted, not used\n")
    lines.append(
        "These keys of compatible configuration files never fail; setting one gives one warning.\n"
    )
    waiting = [key for p in PLACES if not p.spec.used for key in (p.spec.key, *p.spec.aliases)]
    names = sorted([*waiting, *UNUSED_KEYS, *(f"{group}.*" for group in UNUSED_GROUPS)])
    lines.extend(f"- `{name}`" for name in names)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
