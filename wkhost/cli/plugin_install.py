"""`wkhost plugin inspect`, `install` and `upgrade`: shown in plain words, then agreed to."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.text import Text

from wkhost.cli.plugin_access import audited, catalog
from wkhost.cli.plugin_offline import OfflinePlugins, needs_server
from wkhost.cli.plugin_views import show_status, status_json
from wkhost.cli.session import CommandError, Session, json_option, pass_session, plain
from wkhost.link.contract import (
    CapabilityAsk,
    GetPluginVersions,
    InspectPlugin,
    InstallPlugin,
    PluginProposal,
    PluginStatus,
    PluginVersions,
    UpgradePlugin,
)
from wkhost.link.errors import NoServerError
from wkhost.plugin_host.package import builtin_folder, builtin_names, resolve_source


@click.command()
@click.argument("source")
@json_option
@pass_session
def inspect(session: Session, source: str, as_json: bool) -> None:
    """Show what a package asks for, and its digest. Nothing is installed."""
    proposal = _proposal(session, _same_there(source))
    if as_json:
        session.json(status_json(proposal))
        return
    show_proposal(session, proposal, proposal.asks)
    session.line(f"digest {proposal.digest}")


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--builtin", is_flag=True, help="Install all plugins that come with wkhost.")
@click.option("--disabled", is_flag=True, help="Install only; enable it later.")
@click.option("--yes", is_flag=True, help="Agree without being asked; needs --digest.")
@click.option(
    "--digest",
    "digests",
    multiple=True,
    metavar="SHA256",
    help="What `inspect` has shown; one for each SOURCE that is not built in, in their order.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="CAPABILITY",
    help="Withhold something that it asks for. May be repeated.",
)
@click.option("--replace-source", is_flag=True, help="Replace a plugin from another place.")
@click.option("--allow-downgrade", is_flag=True, help="Replace a newer version by an older one.")
@json_option
@pass_session
def install(
    session: Session,
    sources: tuple[str, ...],
    builtin: bool,
    disabled: bool,
    yes: bool,
    digests: tuple[str, ...],
    without: tuple[str, ...],
    replace_source: bool,
    allow_downgrade: bool,
    as_json: bool,
) -> None:
    """Install or upgrade plugins and enable them.

    SOURCE is the name of a built-in plugin, a folder, or an archive (.tar.gz, .zip). What it asks
    for is shown, and nothing is installed until you agree. Built-in plugins are agreed to by their
    name.
    """
    named = [*sources, *(builtin_names() if builtin else ())]
    if not named:
        known = ", ".join(builtin_names()) or "none"
        raise click.UsageError(f"name a SOURCE, or use --builtin; built-in plugins: {known}")
    foreign = [each for each in named if builtin_folder(each) is None]
    if (yes or digests) and len(digests) != len(foreign):
        raise click.UsageError(
            f"--yes: expected one --digest for each of {len(foreign)} SOURCE, got {len(digests)}; "
            "`wkhost plugin inspect SOURCE` shows it"
        )
    wanted = dict(zip(foreign, digests, strict=False))
    for each in named:
        request = InstallPlugin(
            _same_there(each),
            enable=not disabled,
            digest=wanted.get(each, ""),
            withhold=list(without),
            replace_source=replace_source,
            allow_downgrade=allow_downgrade,
        )
        if each in foreign:
            _agree(session, request, yes)
        with session.err.status(f"installing {each} ..."):
            status = _install(session, request)
        show_status(session, status, "installed", as_json)


def _agree(session: Session, request: InstallPlugin, yes: bool) -> None:
    """Fill in what the person agrees to. Raises CommandError when to nothing."""
    proposal = _proposal(session, request.source)
    if request.digest and request.digest != proposal.digest:
        raise CommandError(
            f"{proposal.no}: the package is not what you agreed to: expected {request.digest}, "
            f"got {proposal.digest}; nothing was installed"
        )
    request.digest = proposal.digest
    withheld = set(request.withhold)
    asks = [a for a in proposal.asks if not withheld & {a.name, a.name.partition("=")[0]}]
    request.granted = [ask.name for ask in asks]
    if yes:
        return
    new = [ask for ask in asks if not ask.settled]
    if not sys.stdin.isatty():
        if proposal.installed and new:
            # Kept beside the installed version, so that `upgrade` can ask a person.
            request.granted = []
            return
        raise CommandError(_no_terminal(proposal))
    show_proposal(session, proposal, new if proposal.installed else asks)
    _ask_person(session, f"Install {proposal.no} {proposal.version} and allow this?")


def _no_terminal(proposal: PluginProposal) -> str:
    asks = "; ".join(f"{ask.name} (to {ask.text})" for ask in proposal.asks) or "nothing"
    return plain(
        f"{proposal.no} {proposal.version} asks for: {asks}. Nobody can be asked here; to agree in "
        f"a script use --yes --digest {proposal.digest}"
    )


def _ask_person(session: Session, question: str) -> None:
    """Ask until yes or no is said: neither is taken for granted."""
    if not click.confirm(plain(question), default=None, err=True):
        raise CommandError("nothing was changed")


@click.command()
@click.argument("no")
@click.option("--yes", is_flag=True, help="Agree without being asked; needs --digest.")
@click.option("--digest", default="", metavar="SHA256", help="Which version, by its digest.")
@json_option
@pass_session
def upgrade(session: Session, no: str, yes: bool, digest: str, as_json: bool) -> None:
    """Use a version of NO that waits for consent: shows what it asks for beyond what it has."""
    if yes and not digest:
        raise click.UsageError("--yes: expected --digest, as `wkhost plugin versions` shows it")
    settings = session.settings()
    try:
        found = session.ask(settings.data_path, GetPluginVersions(no), PluginVersions)
    except NoServerError:
        raise needs_server("upgrade", settings.data_path) from None
    waiting = [
        each
        for each in found.releases
        if not each.in_use and each.waiting and digest in ("", each.digest)
    ]
    if not waiting:
        raise CommandError(f"{no}: no version waits for consent")
    release = waiting[-1]
    if not yes:
        session.line(f"{no} {release.version} asks for more than it has. It may also:")
        show_asks(session, release.waiting)
        session.line(f"digest {release.digest}")
        if not sys.stdin.isatty():
            raise CommandError(f"to agree in a script use --yes --digest {release.digest}")
        _ask_person(session, f"Use {no} {release.version} and allow this?")
    request = UpgradePlugin(no, release.digest, [ask.name for ask in release.waiting])
    with session.err.status(f"upgrading {no} ..."):
        status = session.ask(settings.data_path, request, PluginStatus)
    show_status(session, status, "upgraded", as_json)


def _same_there(source: str) -> str:
    """The server may run in another folder, so it gets paths that mean the same there."""
    return source if builtin_folder(source) is not None else str(resolve_source(source))


def _proposal(session: Session, source: str) -> PluginProposal:
    settings = session.settings()
    offline = OfflinePlugins(catalog(settings))
    request = InspectPlugin(source)
    return session.ask_or(
        settings.data_path, request, PluginProposal, lambda: offline.inspect(source)
    )


def _install(session: Session, request: InstallPlugin) -> PluginStatus:
    settings = session.settings()
    offline = OfflinePlugins(catalog(settings))
    return session.ask_or(
        settings.data_path,
        request,
        PluginStatus,
        lambda: audited(settings, request, lambda: offline.install(request)),
    )


def show_proposal(
    session: Session, proposal: PluginProposal, asks: Sequence[CapabilityAsk]
) -> None:
    """Print what a package is and what it would be allowed."""
    title = f"{proposal.no} {proposal.version}"
    if proposal.name:
        title += f", {proposal.name}"
    session.line(title, style="bold")
    if proposal.description:
        session.line(f"  {proposal.description}")
    if proposal.installed:
        session.line(f"  replaces version {proposal.installed}")
    for text in proposal.needs.values():
        session.line(f"  {text}", style="yellow")
    if proposal.dropped:
        session.line(f"  no longer asks for: {', '.join(proposal.dropped)}")
    if not asks:
        session.line("  asks for nothing new" if proposal.installed else "  asks for nothing")
        return
    session.line("It may also:" if proposal.installed else "It may:")
    show_asks(session, asks)


def show_asks(session: Session, asks: Sequence[CapabilityAsk]) -> None:
    """Print capabilities; dangerous ones are marked by a word, not by colour alone."""
    for ask in asks:
        mark = "DANGEROUS " if ask.dangerous else ""
        line = Text("  - ")
        line.append(mark, style="bold red")
        line.append(plain(ask.text))
        line.append(f"  [{plain(ask.name)}]", style="dim")
        session.out.print(line)
