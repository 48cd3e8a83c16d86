"""`wkhost plugin try`: what the enabled plugins would make of a message; nothing is sent."""

from __future__ import annotations

import difflib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import msgspec
import trio
from rich.text import Text

from wkhost import __version__, log
from wkhost.addressing import canonical_id
from wkhost.cli.plugin_access import catalog
from wkhost.cli.plugin_views import cell
from wkhost.cli.session import Session, expected, json_option, pass_session
from wkhost.config import Settings
from wkhost.link.client_sync import SyncLinkClient, connect_operator
from wkhost.link.contract import GetPluginOrder, GetPluginValues, PluginOrder, PluginValues
from wkhost.link.errors import NoServerError
from wkhost.plugin_host.secret_store import SecretKey
from wkhost.plugin_host.trial import (
    MESSAGE_ID,
    Trial,
    TrialSettings,
    TrialStep,
    read_values,
    try_message,
)
from wkhost.store.store import open_store
from wkhost.types import Message

_SUCCESS = "the message would go on to be stored"
_STATES = {
    "skipped": "does not concern it",
    "not_asked": "not asked",
    "not_reached": "not reached, it was refused before",
}


def payload_of(text: str, *, raw: bool) -> bytes:
    """Return the payload of a typed message: JSON as it is, other text as a text message."""
    if not raw:
        try:
            json.loads(text)
        except ValueError:
            text = json.dumps({"type": 1, "content": text}, ensure_ascii=False)
    return text.encode()


def _deciding(settings: Settings) -> list[str]:
    """Return the plugins that decide now: those of the running server, which may have been told
    others than the enabled ones, or else the enabled ones."""
    try:
        with connect_operator(settings.data_path) as link:
            order = expected(link.ask(GetPluginOrder()), PluginOrder)
    except NoServerError:
        entries = catalog(settings).registry.entries()
        return [no for no, entry in entries.items() if entry.enabled]
    return sorted({no for places in order.hooks.values() for no, _ in places})


def _values(settings: Settings, numbers: list[str]) -> dict[str, list[tuple[bytes, bytes]]]:
    """Return copies of the plugins' values, from the server or from a stopped one's store."""
    try:
        with connect_operator(settings.data_path) as link:
            return {no: _ask_values(link, no) for no in numbers}
    except NoServerError:
        if not settings.data_path.exists():
            return {}
        return trio.run(_stored_values, settings, numbers)


def _ask_values(link: SyncLinkClient, no: str) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    more = True
    while more:
        after = found[-1][0] if found else b""
        page = expected(link.ask(GetPluginValues(no, after)), PluginValues)
        found += page.values
        more = page.more and bool(page.values)
    return found


async def _stored_values(
    settings: Settings, numbers: list[str]
) -> dict[str, list[tuple[bytes, bytes]]]:
    store = await open_store(settings.data_path)
    try:
        return {no: read_values(store, settings.plugin_path, no) for no in numbers}
    finally:
        await store.close()


def _run(settings: Settings, message: Message) -> Trial:
    numbers = _deciding(settings)
    folder = Path(tempfile.mkdtemp(prefix="wkhost-try-"))
    trial_settings = TrialSettings(
        budget_s=settings.plugin.timeout_s,
        max_payload_bytes=settings.limits.payload_bytes,
        host_version=__version__,
        secret_key=SecretKey(settings.plugin.secret_key_file, settings.root_dir),
    )
    try:
        values = _values(settings, numbers)
        attempt = partial(
            try_message, message, settings.plugin_path, folder, values, trial_settings, numbers
        )
        return trio.run(attempt)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- how it looks -------------------------------------------------------------------------------


def _pretty(payload: bytes) -> list[str]:
    """Return the payload as lines, JSON with one field per line."""
    try:
        return json.dumps(json.loads(payload), indent=2, ensure_ascii=False).splitlines()
    except ValueError:
        return payload.decode("utf-8", "backslashreplace").splitlines()


def diff(before: bytes, after: bytes) -> Iterator[Text]:
    """Return an edit as the lines of a diff; nothing when there is none."""
    lines = difflib.unified_diff(_pretty(before), _pretty(after), lineterm="", n=1)
    for line in lines:
        if line.startswith(("---", "+++", "@@")):
            continue
        style = {"-": "red", "+": "green"}.get(line[:1], "dim")
        yield cell(f"    {line}", style)


def _headline(number: int, step: TrialStep) -> Text:
    text = Text(f"{number} ")
    text.append_text(cell(step.no, "bold"))
    text.append_text(cell(f" {step.version}: "))
    if step.state in ("skipped", "not_reached"):
        return text.append_text(cell(_STATES[step.state], "dim"))
    words = [step.outcome]
    if step.code:
        words.append(f"with {step.code}")
    if step.policy:
        words.append(f"-> policy {step.policy}")
    if step.text:
        words.append(f"({step.text})")
    took = f"{step.took_s * 1000:,.2f} ms" if step.state == "asked" else _STATES[step.state]
    style = "red" if step.code else ("yellow" if step.policy else "green")
    return text.append_text(cell(" ".join(words), style)).append(f", {took}", style="dim")


def _show(session: Session, trial: Trial) -> None:
    for sentence in trial.problems:
        session.warn(sentence)
    for no, layer in trial.network.items():
        if layer == "none":
            session.warn(f"{no}: nothing keeps this copy from the network (no sandbox)")
    if not trial.steps:
        session.line("no plugin decides about messages (none has a send hook, or none is enabled)")
    for number, step in enumerate(trial.steps, 1):
        session.out.print(_headline(number, step))
        for line in diff(step.before, step.after):
            session.out.print(line)
    for send in trial.sends:
        target = f"{send.channel_id} (type {send.channel_type})"
        session.line(f"{send.no} would send as {send.from_uid} to {target}:")
        for text in _pretty(send.payload):
            session.out.print(cell(f"    {text}", "cyan"))
    if trial.code:
        session.line(f"refused with {trial.code}: {trial.text}", "red")
    else:
        session.line(_SUCCESS, "green")


def trial_json(trial: Trial) -> dict[str, object]:
    """Return the trial with payloads as text."""
    fields: dict[str, object] = msgspec.to_builtins(trial, builtin_types=(bytes,))
    return dict(_texts(fields))


def _texts(value: dict[str, object]) -> Iterator[tuple[str, object]]:
    for key, each in value.items():
        if isinstance(each, bytes):
            yield key, each.decode("utf-8", "backslashreplace")
        elif isinstance(each, list):
            yield key, [dict(_texts(item)) if isinstance(item, dict) else item for item in each]
        else:
            yield key, each


@click.command("try")
@click.argument("message")
@click.option("--from", "from_uid", default="alice", show_default=True, help="Uid of the sender.")
@click.option("--channel", default="bob", show_default=True, help="Channel, or the peer's uid.")
@click.option(
    "--type",
    "channel_type",
    type=click.IntRange(1, 255),
    default=1,
    show_default=True,
    help="Type of the channel: 1 person, 2 group, …",
)
@click.option("--raw", is_flag=True, help="Take MESSAGE as the payload, whatever it is.")
@json_option
@pass_session
def try_(
    session: Session,
    message: str,
    from_uid: str,
    channel: str,
    channel_type: int,
    raw: bool,
    as_json: bool,
) -> None:
    """Show what the enabled plugins would make of MESSAGE; nothing is sent or stored.

    MESSAGE is a payload in JSON, or plain text, which becomes a text message. Copies of the plugins
    with copies of their data decide; the running server, if there is one, is not touched.
    """
    settings = session.settings()
    log.configure(logging.CRITICAL)
    tried = Message(
        MESSAGE_ID,
        canonical_id(from_uid, channel, channel_type),
        channel_type,
        from_uid,
        "try",
        payload_of(message, raw=raw),
    )
    with session.err.status("starting copies of the plugins ..."):
        trial = _run(settings, tried)
    if as_json:
        session.json(trial_json(trial))
    else:
        _show(session, trial)
    if trial.code:
        raise click.exceptions.Exit(3)
