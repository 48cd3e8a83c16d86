"""`wkhost plugin config ...`: a plugin's settings, with their history."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from wkhost.cli.plugin_access import audited, catalog
from wkhost.cli.session import CommandError, Session, json_option, pass_session
from wkhost.link.contract import (
    ConfigVersion,
    GetPluginConfig,
    PluginConfig,
    SetPluginConfig,
)

ACTIONS = ("show", "set", "unset", "history", "diff", "undo", "schema")


@click.command()
@click.argument("no")
@click.argument("action", type=click.Choice(ACTIONS), default="show")
@click.argument("arguments", nargs=-1)
@click.option(
    "--reload",
    is_flag=True,
    help="Start the plugin anew with the settings, instead of asking it to take them as it runs.",
)
@json_option
@pass_session
def config(
    session: Session,
    no: str,
    action: str,
    arguments: tuple[str, ...],
    reload: bool,
    as_json: bool,
) -> None:
    """Show and change the settings of plugin NO.

    \b
    wkhost plugin config NO                       what holds
    wkhost plugin config NO set key=value ...     change, all or none
    wkhost plugin config NO unset key ...         back to the default
    wkhost plugin config NO history               the versions that are kept
    wkhost plugin config NO diff [OLD [NEW]]      what changed between two of them
    wkhost plugin config NO undo                  back to the version before
    wkhost plugin config NO schema                what may be set, as JSON Schema

    A key may be a dotted path into a table (ai.url=https://...). Values are text where the
    plugin wants text, else JSON. The plugin may refuse a change; --reload starts it anew instead.
    """
    answer = _get(session, no)
    if action in ("set", "unset", "undo"):
        answer = _change(session, answer, action, arguments, reload)
    elif reload or (arguments and action != "diff"):
        raise click.UsageError(f"{action} takes no such arguments")
    if action == "schema":
        session.json(answer.schema)
    elif action == "diff":
        _diff(session, answer, arguments, as_json)
    elif action == "history":
        _history(session, answer, as_json)
    else:
        _show(session, answer, as_json)


def _get(session: Session, no: str) -> PluginConfig:
    settings = session.settings()
    return session.ask_or(
        settings.data_path,
        GetPluginConfig(no),
        PluginConfig,
        lambda: catalog(settings).config(no),
    )


def _change(
    session: Session,
    old: PluginConfig,
    action: str,
    arguments: tuple[str, ...],
    reload: bool,
) -> PluginConfig:
    request = SetPluginConfig(old.no, expect=old.number, reload=reload)
    if (action == "undo") == bool(arguments):
        raise click.UsageError("set takes key=value, unset takes keys, undo takes nothing")
    if action == "set":
        request.values = dict(_assignment(old, each) for each in arguments)
    elif action == "unset":
        request.unset = list(arguments)
    else:
        if len(old.history) < 2:
            raise CommandError(f"{old.no}: there is no version before number {old.number}")
        request.restore = old.history[-2].number
    settings = session.settings()
    return session.ask_or(
        settings.data_path,
        request,
        PluginConfig,
        lambda: audited(
            settings, request, lambda: catalog(settings).configure(request, os.geteuid())
        ),
    )


def _assignment(config: PluginConfig, text: str) -> tuple[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{text}: expected key=value")
    declared = config.schema["properties"].get(key, {}).get("type", "")
    current = _value_at(config.values, key)
    if declared == "string" or (not declared and isinstance(current, str)):
        return key, raw
    try:
        return key, json.loads(raw)
    except ValueError as error:
        if not declared and current is None:
            # Nothing is known of its type: a bare word is a text.
            return key, raw
        raise click.UsageError(f"{key}: expected JSON, got {raw!r}") from error


def _value_at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _show(session: Session, answer: PluginConfig, as_json: bool) -> None:
    if as_json:
        plain = msgspec.to_builtins(answer)
        plain.pop("type", None)
        session.json(plain)
        return
    own = answer.history[-1].overrides
    session.line(f"{answer.no}, configuration {answer.number}")
    for name, value in answer.values.items():
        session.line(f"  {name} = {_text(value)}{'' if name in own else '  (default)'}")
    if not answer.values and not answer.secrets:
        session.line("  it has no settings")
    for name, is_set in answer.secrets.items():
        session.line(f"  {name}: a secret, {'set' if is_set else 'not set'}")


def _history(session: Session, answer: PluginConfig, as_json: bool) -> None:
    if as_json:
        session.json(msgspec.to_builtins(answer.history))
        return
    before: dict[str, Any] = {}
    for version in answer.history:
        names = ", ".join(_changes(before, version.overrides)) or "no change"
        at = f"{_time(version)}, by uid {version.by}: {names}" if version.time else "as installed"
        session.line(f"{version.number:>5}  {at}")
        before = version.overrides


def _diff(
    session: Session, answer: PluginConfig, arguments: tuple[str, ...], as_json: bool
) -> None:
    kept = {version.number: version for version in answer.history}
    numbers = [*map(_number, arguments)]
    if len(numbers) > 2:
        raise click.UsageError("diff takes two numbers at most")
    if not numbers:
        numbers = [answer.history[max(0, len(answer.history) - 2)].number]
    old, new = (*numbers, answer.number)[:2]
    for number in (old, new):
        if number not in kept:
            known = ", ".join(map(str, kept))
            raise CommandError(f"{answer.no}: there is no configuration {number}, only {known}")
    changes = _changes(kept[old].overrides, kept[new].overrides)
    if as_json:
        session.json(
            {name: {"old": before, "new": after} for name, (before, after) in changes.items()}
        )
        return
    for name, (before, after) in changes.items():
        session.line(f"- {name} = {_text(before)}" if before is not None else f"- {name}: default")
        session.line(f"+ {name} = {_text(after)}" if after is not None else f"+ {name}: default")
    if not changes:
        session.line("no difference")


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _number(text: str) -> int:
    if not text.isdecimal():
        raise click.UsageError(f"{text}: expected the number of a configuration")
    return int(text)


def _time(version: ConfigVersion) -> str:
    return datetime.fromtimestamp(version.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
