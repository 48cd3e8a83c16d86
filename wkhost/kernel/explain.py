"""What became of a message and who decided it, from the decision journal and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wkhost.hooks.journal import Heard, Journal
from wkhost.hooks.verdict import Policy
from wkhost.link.contract import MessageTrail, PluginDecision, PluginObservation
from wkhost.store.store import Store
from wkhost.types import Message

Observations = Callable[[Message], Sequence[PluginObservation]]


def explain(
    message_id: int,
    journal: Journal,
    store: Store,
    observations: Observations,
    *,
    now: float,
    wall_s: float,
) -> MessageTrail:
    """Return the trail of a message. `now` is the journal's clock, `wall_s` the wall's.

    Raises: StoreError.
    """
    entries = journal.find(message_id)
    stored = store.message_by_id(message_id)
    decisions = [_decision(heard) for heard in entries]
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
        reason=last.text if last.code else "",
        decisions=decisions,
    )


def _fate(last: Heard) -> str:
    if last.code:
        return "refused"
    if last.outcome is None or last.policy is Policy.HOLD:
        return "waiting"
    return "passed"


def _decision(heard: Heard) -> PluginDecision:
    record = heard.line.record
    asked = heard.called_at > 0.0
    return PluginDecision(
        no=record.no,
        version=record.version,
        generation=heard.line.generation,
        asked=asked,
        outcome="" if heard.outcome is None else heard.outcome.value,
        took_s=heard.answered_at - heard.called_at if asked and heard.answered_at else 0.0,
        policy="" if heard.policy is None else heard.policy.value,
        code=heard.code,
        text=heard.text,
    )
