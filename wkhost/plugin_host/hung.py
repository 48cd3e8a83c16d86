"""Telling a process that hangs from one that is slow.

Theory of operation. A plugin that has calls and sends nothing may be waiting for something; so it
is asked how it is, which a process whose loop turns answers in between. One that says nothing at
all to that hangs: it would fail every call for ever, and only a new process helps. A call with a
deadline keeps users waiting, so there the patience is short; what only observes may block for as
long as it may take over a batch.
"""

from __future__ import annotations

import math

import trio

from wkhost.plugin_host import calls
from wkhost.plugin_host.session import Session

PATIENCE_S = 10.0
LONG_PATIENCE_S = 40.0
"""Above the longest budget of a call without a deadline."""
LOOK_EVERY_S = 0.5


async def watch(session: Session) -> None:
    """Break the session off when its process hangs. Runs until cancelled."""
    frames = oldest = -1
    since = 0.0
    asked = False
    while True:
        await trio.sleep(LOOK_EVERY_S)
        now = trio.current_time()
        call = session.oldest_call
        if call is None or session.frames != frames or call.call_id != oldest:
            frames, since, asked = session.frames, now, False
            oldest = -1 if call is None else call.call_id
            continue
        patience = LONG_PATIENCE_S if call.deadline == math.inf else PATIENCE_S
        if now - since >= patience:
            session.break_off(f"it hangs: no sign of life for {patience:.0f} s")
            return
        if not asked and now - since >= patience / 2:
            asked = True
            session.submit(calls.health(patience / 2, lambda answer: None))
