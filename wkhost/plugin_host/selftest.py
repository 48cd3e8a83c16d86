"""A new generation is asked how it is before it takes over."""

from __future__ import annotations

import trio

from wkhost.errors import PluginError
from wkhost.hooks.target import Answer
from wkhost.hooks.verdict import Continue, Failure, Refuse
from wkhost.plugin_host import calls
from wkhost.plugin_host.output import escape
from wkhost.plugin_host.session import Session

HEALTH_BUDGET_S = 5.0


async def check_health(session: Session) -> None:
    """Return when the plugin says that it is well, or its code has no `health`.

    Raises PluginError with what it says otherwise, or that it says nothing.
    """
    if "health" not in session.implemented:
        return
    found: list[Answer] = []
    answered = trio.Event()

    def reply(answer: Answer) -> None:
        found.append(answer)
        answered.set()

    session.submit(calls.health(HEALTH_BUDGET_S, reply))
    with trio.move_on_after(HEALTH_BUDGET_S):
        await answered.wait()
    answer = found[0] if found else None
    if isinstance(answer, Continue):
        return
    why = f"no answer within {HEALTH_BUDGET_S:.0f} s"
    if isinstance(answer, Refuse):
        why = answer.text
    elif isinstance(answer, Failure):
        why = answer.detail
    raise PluginError(f"{session.no}: is not healthy: {escape(why)}")
