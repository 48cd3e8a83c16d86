"""What became of a message and who decided it, from the decision journal and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wkhost.hooks.journal import Heard
from wkhost.hooks.records import Asked
from wkhost.kernel.permission import RULES
from wkhost.link.contract import MessageTrail, PluginDecision, PluginObservation
from wkhost.store.store import Store
from wkhost.types import Message

Observations = Callable[[Message], Sequence[PluginObservation]]


def explain(
    message_id: int,
    entries: Sequence[Heard],
    store: Store,
    observations: Observations,
    *,
    now: float,
    wall_s: float,
) -> MessageTrail:
    """Return the trail of a message of which the dispatcher knows `entries`. `now` is the
    journal's clock, `wall_s` the wall's.

    Raises: StoreError.
    """
    stored = store.message_by_id(message_id)
    decisions = [_decision(heard, heard.plugin) for heard in entries if heard.plugin is not None]
    if stored is not None:
        return MessageTrail(
            message_id,
            "stored",
            door=entries[0].door if entries else "",
            from_uid=stored.from_uid,
            channel_id=stored.channel_id,
            channel_type=stored.channel_type,
            at=float(stored.timestamp),
            message_seq=stored.message_seq,
            decisions=decisions,
            observations=list(observations(stored)),
        )
    if not entries:
        return MessageTrail(message_id, "unknown")
    first, last = entries[0], entries[-1]
    return MessageTrail(
        message_id,
        _fate(last),
        door=first.door,
        from_uid=first.from_uid,
        channel_id=first.channel_id,
        channel_type=first.channel_type,
        at=wall_s - (now - (first.called_at or first.answered_at)),
        reason_code=last.code,
        reason=_reason(last),
        decisions=decisions,
    )


def _fate(last: Heard) -> str:
    if last.code:
        return "refused"
    if last.outcome is None or last.parked:
        return "waiting"
    return "passed"


def _reason(last: Heard) -> str:
    if last.text or last.plugin is not None:
        return last.text if last.code else ""
    return RULES.get(last.code, "")


def _decision(heard: Heard, plugin: Asked) -> PluginDecision:
    asked = heard.called_at > 0.0
    return PluginDecision(
        no=plugin.no,
        version=plugin.version,
        generation=plugin.generation,
        asked=asked,
        outcome="" if heard.outcome is None else heard.outcome.value,
        took_s=heard.answered_at - heard.called_at if asked and heard.answered_at else 0.0,
        policy="" if heard.policy is None else heard.policy.value,
        code=heard.code,
        text=heard.text,
    )
