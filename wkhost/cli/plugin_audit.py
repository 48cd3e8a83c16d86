"""`wkhost plugin audit`: who changed what about plugins, and what plugins were denied."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec

from wkhost.cli.plugin_access import audit_log
from wkhost.cli.session import CommandError, Session, json_option, pass_session
from wkhost.link.contract import GetPluginAudit, PluginAudit
from wkhost.plugin_host.audit_events import read_audit


@click.command()
@click.option("--verify", is_flag=True, help="Check the whole log for changes instead.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="How many of the newest records to show.",
)
@json_option
@pass_session
def audit(session: Session, verify: bool, lines: int, as_json: bool) -> None:
    """Show the audit log: changes with who made them, denials with how often.

    With --verify, say whether the chain of records is whole; keep the hash that is printed
    somewhere else to find a log that was written anew.
    """
    settings = session.settings()
    request = GetPluginAudit(lines, verify)
    answer = session.ask_or(
        settings.data_path,
        request,
        PluginAudit,
        lambda: read_audit(audit_log(settings), request),
    )
    if verify:
        _tell_check(session, answer, as_json)
        return
    for record in answer.records:
        if as_json:
            session.json(record)
        else:
            session.line(_line(record))
    if not answer.records and not as_json:
        session.line("the audit log is empty")


def _tell_check(session: Session, answer: PluginAudit, as_json: bool) -> None:
    if as_json:
        plain = msgspec.to_builtins(answer)
        for name in ("type", "records"):
            plain.pop(name, None)
        session.json(plain)
    elif not answer.problem:
        session.line(f"{answer.count} records, all whole, the newest is {answer.last_seq}")
        session.line(f"hash {answer.last_hash}")
    if answer.problem:
        raise CommandError(f"the audit log was tampered with or damaged: {answer.problem}")


def _line(record: dict[str, Any]) -> str:
    who = f"{record['role']} uid {record['uid']} pid {record['pid']}"
    # JSON keeps what plugins wrote inside one pair of quotes.
    details = json.dumps(record["details"], ensure_ascii=True)
    what = f"{record['action']} {record['plugin']} {details}"
    return f"{record['seq']:>6} {record['time']} {who}  {what}"
