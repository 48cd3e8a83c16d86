"""What an operator agrees to: a package, named by its digest, and capabilities, by their names.

Pure but for the look at built-in plugins. A package that comes with wkhost is agreed to by its
name: whoever runs the server runs its code already. Any other package needs the digest that the
operator has seen. What was granted to the version before stays granted; what an upgrade asks for
beyond it waits; what it does not ask for any more is dropped without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from wkhost.errors import PluginError
from wkhost.link import contract as c
from wkhost.plugin_host.capability import Capability, asked, find, missing, names
from wkhost.plugin_host.manifest import Manifest
from wkhost.plugin_host.package import Package, builtin_folder
from wkhost.plugin_host.registry import Entry

DIGEST_PREFIX = "sha256:"


class Consent(msgspec.Struct, frozen=True):
    """What holds if the package becomes the installed one. `waiting` is what nobody has agreed to:
    with any, it does not."""

    granted: tuple[str, ...]
    denied: tuple[str, ...]
    waiting: tuple[Capability, ...] = ()


def digest_text(digest: str) -> str:
    """Return a digest as people see it and `--digest` takes it."""
    return DIGEST_PREFIX + digest


def is_builtin(source: str) -> bool:
    return builtin_folder(source) is not None


def origin(source: str) -> str:
    """Return what two versions of one plugin have in common: a built-in's name, or the folder that
    the package lies in."""
    if is_builtin(source):
        return f"built-in {source}"
    return str(Path(source).parent)


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: numbers by value; a word such as rc1 comes before none."""
    parts = re.findall(r"\d+|[A-Za-z]+", version.partition("+")[0])
    key: list[tuple[int, int, str]] = []
    zeros = 0
    for part in parts:
        if part.isdigit() and int(part) == 0:
            zeros += 1
        elif part.isdigit():
            key += [(1, 0, "")] * zeros + [(1, int(part), "")]
            zeros = 0
        else:
            # 1.0-rc1 is 1-rc1: zeros at the end of the numbers mean nothing.
            key.append((-1, 0, part))
            zeros = 0
    return (*key, (0, 0, ""))


def decide(request: c.InstallPlugin, package: Package, before: Entry | None) -> Consent:
    """Return what the operator has agreed to with `request`. Raises PluginError when not to the
    package itself, or when it must not replace what is installed."""
    manifest = package.manifest
    by_name = is_builtin(request.source)
    _check_digest(request, package, by_name)
    problems = replacing(request.source, manifest, before)
    allowed = {"replace_source": request.replace_source, "allow_downgrade": request.allow_downgrade}
    for flag, text in problems.items():
        if not allowed[flag]:
            raise PluginError(f"{text} (--{flag.replace('_', '-')} allows it)")
    everything = names(asked(manifest))
    agreed = everything if request.granted is None else _known(manifest, request.granted)
    denied = () if before is None else before.denied
    denied = tuple(dict.fromkeys((*denied, *_known(manifest, request.withhold))))
    return consent(manifest, agreed, before, denied)


def consent(
    manifest: Manifest, agreed: Sequence[str], before: Entry | None, denied: tuple[str, ...]
) -> Consent:
    """Return what holds when `agreed` comes to what was granted before."""
    granted = {*agreed, *((before.granted or ()) if before is not None else ())}
    waiting = missing(manifest, granted, denied)
    if waiting and before is None:
        raise PluginError(
            f"{manifest.no}: asks for more than was granted: {', '.join(names(waiting))} "
            "(grant it, or withhold it with --without)"
        )
    # Only what it asks for: another name must not lie in wait for a later version.
    kept = tuple(name for name in names(asked(manifest)) if name in granted)
    smaller = tuple(
        sorted(
            name for name in granted if "=" in name and name not in kept and _asks(manifest, name)
        )
    )
    return Consent((*kept, *smaller), denied, tuple(waiting))


def changed(entry: Entry, manifest: Manifest, name: str, granted: bool) -> Entry:
    """Return the entry with one capability of its installed version granted, or denied for good."""
    capability = find(manifest, name)
    if capability is None and not granted and name in entry.denied:
        return entry
    (full,) = _known(manifest, [name])
    stem = full.partition("=")[0]
    denied = tuple(each for each in entry.denied if each not in (full, stem))
    if not granted:
        return msgspec.structs.replace(entry, denied=(*denied, stem if "=" in full else full))
    have = tuple(dict.fromkeys((*(entry.granted or ()), full)))
    known = tuple(
        msgspec.structs.replace(each, granted=have) if each.digest == entry.digest else each
        for each in entry.releases
    )
    return msgspec.structs.replace(entry, granted=have, denied=denied, releases=known)


def replacing(source: str, manifest: Manifest, before: Entry | None) -> dict[str, str]:
    """Return, by the flag that allows it, why `source` may not simply replace what is there."""
    if before is None:
        return {}
    found: dict[str, str] = {}
    if origin(source) != origin(before.source):
        found["replace_source"] = (
            f"{manifest.no}: is installed from {origin(before.source)}, not from {origin(source)}"
        )
    if version_key(manifest.version) < version_key(before.version):
        found["allow_downgrade"] = (
            f"{manifest.no}: {manifest.version} is older than the installed {before.version}; "
            "`wkhost plugin rollback` goes back to a version that was installed"
        )
    return found


def propose(source: str, package: Package, before: Entry | None) -> c.PluginProposal:
    """Return what the operator is shown before an install."""
    manifest = package.manifest
    granted = () if before is None else before.granted or ()
    denied = () if before is None else before.denied
    new = set(names(missing(manifest, granted, denied)))
    asks = asked(manifest)
    return c.PluginProposal(
        no=manifest.no,
        version=manifest.version,
        digest=digest_text(package.digest),
        name=manifest.name,
        description=manifest.description,
        builtin=is_builtin(source),
        installed="" if before is None else before.version,
        asks=[
            c.CapabilityAsk(each.name, each.text, each.dangerous, each.name not in new)
            for each in asks
        ],
        denied=list(denied),
        dropped=sorted(set(granted) - set(names(asks))),
        needs=replacing(source, manifest, before),
    )


def _check_digest(request: c.InstallPlugin, package: Package, by_name: bool) -> None:
    if not request.digest:
        if by_name:
            return
        raise PluginError(
            f"{package.manifest.no}: expected the digest that you agree to, such as "
            f"{digest_text(package.digest)} (`wkhost plugin inspect` shows it)"
        )
    if request.digest.removeprefix(DIGEST_PREFIX) != package.digest:
        raise PluginError(
            f"{package.manifest.no}: the package is not what you agreed to: expected "
            f"{request.digest[:80]}, got {digest_text(package.digest)}; nothing was installed"
        )


def _known(manifest: Manifest, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of what is asked for. Raises PluginError naming a stranger."""
    found = []
    for name in wanted:
        capability = find(manifest, name)
        if capability is None:
            known = ", ".join(names(asked(manifest))) or "nothing"
            raise PluginError(
                f"{manifest.no}: does not ask for {name[:100]!a}; it asks for: {known}"
            )
        found.append(capability.name)
    return tuple(found)


def _asks(manifest: Manifest, name: str) -> bool:
    """Whether an amount of the same kind is asked for."""
    return find(manifest, name.partition("=")[0]) is not None
