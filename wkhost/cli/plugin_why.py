"""`wkhost plugin why`: who decided what about one message."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
from rich.table import Table

from wkhost.cli import plugin_offline
from wkhost.cli.plugin_views import cell
from wkhost.cli.session import Session, json_option, pass_session
from wkhost.link.contract import ExplainMessage, MessageTrail, PluginDecision
from wkhost.link.errors import NoServerError

_FATES = {
    "stored": "stored",
    "refused": "refused",
    "waiting": "waits for a plugin",
    "passed": "plugins let it pass, but it is not stored: it was sent without persistence",
    "unknown": "not known: there was no such message, or it is too long ago and was not stored",
}


def trail_json(trail: MessageTrail) -> dict[str, Any]:
    """Return the trail as plain values, without the link's tag."""
    fields: dict[str, Any] = msgspec.to_builtins(trail)
    fields.pop("type", None)
    return fields


def _facts(trail: MessageTrail) -> list[tuple[str, str]]:
    facts = [("message", str(trail.message_id)), ("fate", _FATES[trail.fate])]
    if trail.fate == "unknown":
        return facts
    if trail.fate == "refused":
        facts.append(("reason", f"{trail.reason_code} {trail.reason}".strip()))
    if trail.message_seq:
        facts.append(("message_seq", str(trail.message_seq)))
    facts.append(("from", trail.from_uid))
    facts.append(("channel", f"{trail.channel_id} (type {trail.channel_type})"))
    if trail.door:
        facts.append(("door", trail.door))
    facts.append(("at", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(trail.at))))
    return facts


def _verdict(decision: PluginDecision) -> str:
    if not decision.outcome:
        return "has not answered yet"
    parts = [decision.outcome]
    if decision.code:
        parts.append(f"with {decision.code}")
    if decision.policy:
        parts.append(f"-> policy {decision.policy}")
    if decision.text:
        parts.append(f"({decision.text})")
    return " ".join(parts)


def decisions_table(trail: MessageTrail) -> Table:
    """Return who was asked, in the order of asking."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "plugin", "version", "generation", "took", "verdict"):
        table.add_column(name)
    for number, each in enumerate(trail.decisions, 1):
        took = f"{each.took_s * 1e6:,.0f} µs" if each.asked else "not asked"
        style = "red" if each.code else ("yellow" if each.policy else "")
        table.add_row(
            str(number),
            cell(each.no, "bold"),
            cell(each.version),
            str(each.generation),
            took,
            cell(_verdict(each), style),
        )
    return table


@click.command()
@click.argument("message_id", type=click.IntRange(1))
@json_option
@pass_session
def why(session: Session, message_id: int, as_json: bool) -> None:
    """Show what became of a message: which plugins saw it, what each said, and what that decided.

    MESSAGE_ID is in SENDACKs, in answers of the API and in histories; refused messages have one
    too. The server remembers the decisions of about `plugin.journal` messages.
    """
    settings = session.settings()
    try:
        trail = session.ask(settings.data_path, ExplainMessage(message_id), MessageTrail)
    except NoServerError:
        raise plugin_offline.needs_server("why", settings.data_path) from None
    if as_json:
        session.json(trail_json(trail))
        return
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(trail):
        facts.add_row(name, cell(value))
    session.out.print(facts)
    if trail.decisions:
        session.line()
        session.out.print(decisions_table(trail))
    elif trail.fate == "stored":
        session.line("no plugin was asked, or it is too long ago to know")
    if trail.fate == "refused" and not any(each.code for each in trail.decisions):
        session.line("the server refused it by its own rules, no plugin did")
    for seen in trail.observations:
        state = "has passed it" if seen.seen else "has not come to it yet"
        session.line(f"{seen.no} {seen.hook}: {state}")
