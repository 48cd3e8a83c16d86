"""`wkhost plugin versions`, `rollback`, `grant` and `revoke`."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from rich.table import Table

from wkhost.cli.plugin_access import audited, catalog
from wkhost.cli.plugin_offline import OfflinePlugins, needs_server
from wkhost.cli.plugin_views import cell, show_status, status_json
from wkhost.cli.session import Session, json_option, pass_session
from wkhost.link.contract import (
    GetPluginVersions,
    GrantPlugin,
    PluginStatus,
    PluginVersions,
    RollbackPlugin,
)
from wkhost.link.errors import NoServerError


@click.command()
@click.argument("no")
@json_option
@pass_session
def versions(session: Session, no: str, as_json: bool) -> None:
    """Show the installed versions of NO, what is kept of earlier ones, and what it may do."""
    settings = session.settings()
    answer = session.ask_or(
        settings.data_path,
        GetPluginVersions(no),
        PluginVersions,
        lambda: catalog(settings).versions(no),
    )
    if as_json:
        session.json(status_json(answer))
        return
    session.out.print(_releases_table(answer))
    if answer.snapshots:
        session.out.print(_snapshots_table(answer))
    if answer.rights:
        session.out.print(_rights_table(answer))


@click.command()
@click.argument("no")
@click.argument("to", default="", metavar="[VERSION|SNAPSHOT]")
@json_option
@pass_session
def rollback(session: Session, no: str, to: str, as_json: bool) -> None:
    """Go back to an earlier version of NO, with the values, settings and places it had.

    Without a version: to the one that was left last. What is left now is kept as a snapshot.
    """
    settings = session.settings()
    try:
        with session.err.status(f"going back with {no} ..."):
            status = session.ask(settings.data_path, RollbackPlugin(no, to), PluginStatus)
    except NoServerError:
        raise needs_server("rollback", settings.data_path) from None
    show_status(session, status, "rolled back", as_json)


@click.command()
@click.argument("no")
@click.argument("capability")
@json_option
@pass_session
def grant(session: Session, no: str, capability: str, as_json: bool) -> None:
    """Allow NO something that it asks for, such as hook.send.payload, from its next call on."""
    _set(session, GrantPlugin(no, capability, granted=True), as_json)


@click.command()
@click.argument("no")
@click.argument("capability")
@json_option
@pass_session
def revoke(session: Session, no: str, capability: str, as_json: bool) -> None:
    """Deny NO something from its next call on; it stays denied over upgrades."""
    _set(session, GrantPlugin(no, capability, granted=False), as_json)


def _set(session: Session, request: GrantPlugin, as_json: bool) -> None:
    settings = session.settings()
    offline = OfflinePlugins(catalog(settings))
    status = session.ask_or(
        settings.data_path,
        request,
        PluginStatus,
        lambda: audited(settings, request, lambda: offline.set_grant(request)),
    )
    what = "granted" if request.granted else "revoked"
    show_status(session, status, f"{what} {request.capability}", as_json)


def _releases_table(answer: PluginVersions) -> Table:
    table = _table("version", "installed", "digest", "")
    for each in reversed(answer.releases):
        notes = ["in use"] if each.in_use else []
        if each.waiting:
            notes.append("waits for consent to " + ", ".join(ask.name for ask in each.waiting))
        if each.withdrawn:
            notes.append(each.withdrawn)
        style = "bold" if each.in_use else ""
        table.add_row(
            cell(each.version, style),
            cell(_when(each.installed_at)),
            cell(each.digest[:19]),
            cell("; ".join(notes)),
        )
    return table


def _snapshots_table(answer: PluginVersions) -> Table:
    table = _table("snapshot", "taken", "when")
    for each in reversed(answer.snapshots):
        table.add_row(cell(each.name), cell(_when(each.taken_at)), cell(each.why))
    return table


def _rights_table(answer: PluginVersions) -> Table:
    table = _table("capability", "", "it may")
    for each in answer.rights:
        mark = "granted" if each.granted else "denied"
        danger = "DANGEROUS: " if each.dangerous else ""
        style = "green" if each.granted else "dim"
        table.add_row(cell(each.name), cell(mark, style), cell(danger + each.text))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    return table


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
