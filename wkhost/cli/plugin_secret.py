"""`wkhost plugin secret ...`: values that plugins need and nobody else may see."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from wkhost.cli.plugin_access import audited, catalog
from wkhost.cli.session import Session, json_option, pass_session
from wkhost.link.contract import GetPluginSecrets, PluginSecrets, SetPluginSecret
from wkhost.plugin_host.secret_store import MAX_VALUE_BYTES, generate_key


@click.group()
def secret() -> None:
    """Set and change plugins' secrets. Values come from standard input, never as arguments."""


@secret.command("set")
@click.argument("no")
@click.argument("key")
@pass_session
def set_(session: Session, no: str, key: str) -> None:
    """Set secret KEY of plugin NO: asked for on a terminal, else read from standard input.

    A running plugin has the value at once.
    """
    _put(session, no, key, rotate=False)
    session.line(f"{no}: the secret {key} is set")


@secret.command()
@click.argument("no")
@click.argument("key")
@pass_session
def rotate(session: Session, no: str, key: str) -> None:
    """Replace secret KEY of plugin NO, which must be set, without a restart."""
    _put(session, no, key, rotate=True)
    session.line(f"{no}: the secret {key} is changed")


@secret.command()
@click.argument("no")
@click.argument("key")
@pass_session
def unset(session: Session, no: str, key: str) -> None:
    """Forget secret KEY of plugin NO."""
    _ask(session, SetPluginSecret(no, key, None))
    session.line(f"{no}: the secret {key} is removed")


@secret.command("list")
@click.argument("no")
@json_option
@pass_session
def list_(session: Session, no: str, as_json: bool) -> None:
    """List the secrets that plugin NO declares, and which are set. Values are never shown."""
    settings = session.settings()
    answer = session.ask_or(
        settings.data_path,
        GetPluginSecrets(no),
        PluginSecrets,
        lambda: catalog(settings).secret_times(no),
    )
    if as_json:
        session.json({"no": no, "set_at": answer.set_at})
        return
    for name, at in answer.set_at.items():
        when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        session.line(f"{name}: {f'set {when}' if at else 'not set'}")
    if not answer.set_at:
        session.line(f"{no} declares no secrets")


@secret.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@pass_session
def keygen(session: Session, path: Path) -> None:
    """Write a new key that seals secrets to PATH (mode 0600), which must not exist."""
    generate_key(path)
    session.line(f"wrote {path}; name it in plugin.secretKeyFile, and keep a copy elsewhere")


def _put(session: Session, no: str, key: str, *, rotate: bool) -> None:
    _ask(session, SetPluginSecret(no, key, _value(key), rotate))


def _ask(session: Session, request: SetPluginSecret) -> PluginSecrets:
    settings = session.settings()
    return session.ask_or(
        settings.data_path,
        request,
        PluginSecrets,
        lambda: audited(settings, request, lambda: catalog(settings).set_secret(request)),
    )


def _value(key: str) -> str:
    """Ask for the value, or take standard input without its last line end."""
    if sys.stdin.isatty():
        value: str = click.prompt(key, hide_input=True, confirmation_prompt=True)
        return value
    data = sys.stdin.buffer.read(MAX_VALUE_BYTES + 2)
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
