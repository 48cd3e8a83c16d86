"""`wkhost plugin doctor`: what contains the plugins, by which layer, and what is missing why."""

from __future__ import annotations

import click
import msgspec

from wkhost.cli.session import Session, json_option, pass_session
from wkhost.link.contract import GetPluginSandbox, PluginSandbox
from wkhost.plugin_host.sandbox.ability import find_ability
from wkhost.plugin_host.sandbox.launcher import report_ability

MEANINGS = {
    "fs": "sees no files but its own",
    "net": "reaches the network through the host's proxy alone",
    "pid": "sees no other processes",
    "syscalls": "makes only the system calls it needs",
    "landlock": "files once more, by the kernel's own rules",
    "uid": "runs as a user of its own",
    "memory": "memory is bounded for all its processes together",
    "cpu": "a fair share of the CPU",
    "processes": "a bounded number of processes",
}
"""What a layer that holds means for a plugin."""


@click.command()
@json_option
@pass_session
def doctor(session: Session, as_json: bool) -> None:
    """Show the sandbox: its layers on this machine and for each active plugin.

    A layer counts only where a probe at the start of the server tried to break it and failed.
    While the server is stopped, the probe runs now, as the user who asks.
    """
    settings = session.settings()
    answer = session.ask_or(
        settings.data_path,
        GetPluginSandbox(),
        PluginSandbox,
        lambda: report_ability(find_ability()),
    )
    if as_json:
        fields = msgspec.to_builtins(answer)
        fields.pop("type", None)
        session.json(fields)
        return
    session.line(f"bubblewrap  {answer.bubblewrap}")
    if not answer.held:
        session.line("nothing contains plugins on this machine", "red")
    for layer in answer.held:
        session.line(f"held        {layer:<9}  {MEANINGS.get(layer, '')}", "green")
    for layer, reason in answer.missing.items():
        session.line(f"missing     {layer:<9}  {reason}", "yellow")
    for plugin in answer.plugins:
        session.line()
        session.line(f"plugin {plugin.no}: {plugin.mode}")
        if plugin.refusal:
            session.line(f"  refused   {plugin.refusal}")
            continue
        session.line(f"  required  {', '.join(plugin.required) or 'nothing'}")
        for layer, how in plugin.layers.items():
            session.line(f"  {layer:<9} {how}")
