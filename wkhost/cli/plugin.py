"""`wkhost plugin ...`: asks the running server, or works on a stopped server's data directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from plugin_sdk.template import render
from wkhost.cli import plugin_log_view, plugin_offline, plugin_views
from wkhost.cli.plugin_access import audited, catalog
from wkhost.cli.plugin_audit import audit
from wkhost.cli.plugin_config import config
from wkhost.cli.plugin_doctor import doctor
from wkhost.cli.plugin_install import inspect, install, upgrade
from wkhost.cli.plugin_secret import secret
from wkhost.cli.plugin_top import top
from wkhost.cli.plugin_try import try_
from wkhost.cli.plugin_versions import grant, revoke, rollback, versions
from wkhost.cli.plugin_views import show_status
from wkhost.cli.plugin_why import why
from wkhost.cli.session import CommandError, Session, expected, json_option, pass_session
from wkhost.config import Settings
from wkhost.link.client_sync import connect_operator
from wkhost.link.contract import (
    GetPlugin,
    GetPluginLogs,
    GetPluginOrder,
    ListPlugins,
    PluginAction,
    PluginList,
    PluginLogs,
    PluginOrder,
    PluginStatus,
)
from wkhost.link.errors import NoServerError

FOLLOW_INTERVAL_S = 0.5
MAX_LINES = 10_000


@click.group()
def plugin() -> None:
    """Write, install and manage plugins.

    install, list, info, enable, disable, uninstall, order, config, secret, audit and doctor also
    work while the server is stopped; they then act on its data directory.
    """


for _command in (
    *(audit, config, doctor, grant, inspect, install, revoke, rollback, secret, top, try_),
    *(upgrade, versions, why),
):
    plugin.add_command(_command)


def _offline(settings: Settings) -> plugin_offline.OfflinePlugins:
    return plugin_offline.OfflinePlugins(catalog(settings))


@plugin.command()
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where the plugin's folder is made; the current folder by default.",
)
@pass_session
def new(session: Session, name: str, parent: Path) -> None:
    """Write a small working plugin into a new folder NAME."""
    folder = parent / name
    try:
        written = render(name, folder)
    except (ValueError, OSError) as error:
        raise CommandError(f"cannot write the plugin: {error}") from error
    session.line(f"wrote {folder}/")
    for path in written:
        session.line(f"  {path.name}")
    session.line(f"try it: wkhost plugin install {folder}")


@plugin.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """List the installed plugins and their states."""
    settings = session.settings()
    answer = session.ask_or(
        settings.data_path, ListPlugins(), PluginList, lambda: _offline(settings).list()
    )
    if as_json:
        session.json([plugin_views.status_json(each) for each in answer.plugins])
    elif answer.plugins:
        session.out.print(plugin_views.list_table(answer.plugins))
    else:
        where = settings.plugin_path
        session.line(f"no plugin is installed in {where}; try: wkhost plugin install moderation")


@plugin.command()
@click.argument("no")
@json_option
@pass_session
def info(session: Session, no: str, as_json: bool) -> None:
    """Show one plugin: state, process, hooks, calls."""
    settings = session.settings()
    status = session.ask_or(
        settings.data_path, GetPlugin(no), PluginStatus, lambda: _offline(settings).get(no)
    )
    if as_json:
        session.json(plugin_views.status_json(status))
    else:
        session.out.print(plugin_views.info_table(status))


@plugin.command()
@click.argument("no")
@json_option
@pass_session
def enable(session: Session, no: str, as_json: bool) -> None:
    """Let a plugin decide from now on."""
    _switch(session, no, True, as_json)


@plugin.command()
@click.argument("no")
@json_option
@pass_session
def disable(session: Session, no: str, as_json: bool) -> None:
    """Take a plugin out of the way of messages; it stays installed."""
    _switch(session, no, False, as_json)


def _switch(session: Session, no: str, enabled: bool, as_json: bool) -> None:
    settings = session.settings()
    action = "enable" if enabled else "disable"
    request = PluginAction(no, action)
    act = partial(_offline(settings).set_enabled, no, enabled)
    status = session.ask_or(
        settings.data_path, request, PluginStatus, partial(audited, settings, request, act)
    )
    show_status(session, status, f"{action}d", as_json)


@plugin.command()
@click.argument("no")
@json_option
@pass_session
def reload(session: Session, no: str, as_json: bool) -> None:
    """Start a plugin anew without losing a message.

    A new process starts, messages switch to it between two batches, and the old one finishes what
    it has.
    """
    settings = session.settings()
    try:
        with session.err.status(f"reloading {no} ..."):
            status = session.ask(settings.data_path, PluginAction(no, "reload"), PluginStatus)
    except NoServerError:
        raise plugin_offline.needs_server("reload", settings.data_path) from None
    show_status(session, status, "reloaded", as_json)


@plugin.command()
@click.argument("no")
@json_option
@pass_session
def uninstall(session: Session, no: str, as_json: bool) -> None:
    """Remove a plugin."""
    settings = session.settings()
    request = PluginAction(no, "uninstall")
    act = partial(_offline(settings).uninstall, no)
    session.ask_or(
        settings.data_path, request, PluginStatus, partial(audited, settings, request, act)
    )
    if as_json:
        session.json({"no": no, "uninstalled": True})
    else:
        session.line(f"{no} uninstalled")


@plugin.command()
@json_option
@pass_session
def order(session: Session, as_json: bool) -> None:
    """Show in which order plugins are asked, per hook, and why."""
    settings = session.settings()
    answer = session.ask_or(
        settings.data_path, GetPluginOrder(), PluginOrder, lambda: _offline(settings).order()
    )
    if as_json:
        session.json(
            {
                hook: [{"no": no, "reason": reason} for no, reason in places]
                for hook, places in answer.hooks.items()
            }
        )
    elif answer.hooks:
        session.out.print(plugin_views.order_table(answer))
        session.line()
        session.note(plugin_views.ORDER_RULE)
    else:
        session.line("no plugin is enabled")


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """End at Ctrl-C without a word; a terminal has shown ^C, and the prompt goes below it."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stdin.isatty():
            click.echo(err=True)


@plugin.command()
@click.argument("no")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1, MAX_LINES),
    default=200,
    show_default=True,
    help="How many of the last lines to begin with.",
)
@json_option
@pass_session
def logs(session: Session, no: str, follow: bool, lines: int, as_json: bool) -> None:
    """Show what a plugin wrote to stdout, stderr and its log."""
    settings = session.settings()
    try:
        link = connect_operator(settings.data_path)
    except NoServerError:
        raise plugin_offline.needs_server("logs", settings.data_path) from None
    with link, _until_interrupted():
        after = 0
        while True:
            answer = expected(link.ask(GetPluginLogs(no, after, lines)), PluginLogs)
            for line in answer.lines:
                if as_json:
                    session.json({"no": no, "line": line})
                else:
                    for part in plugin_log_view.readable(line):
                        session.line(part)
            if not follow:
                return
            # As much as the server keeps, so that a plugin that prints fast is not fallen behind.
            after, lines = answer.next, MAX_LINES
            time.sleep(FOLLOW_INTERVAL_S)
