"""What is stored and was delivered, held against what the senders were told."""

from __future__ import annotations

import base64
from collections import defaultdict
from itertools import pairwise
from typing import Any

import httpx
import msgspec

from wkhost.bench.errors import BenchError
from wkhost.bench.faults.guard import FORBIDDEN, MASKED
from wkhost.bench.faults.traffic import Fate, Traffic
from wkhost.bench.server import Server
from wkhost.errors import ReasonCode
from wkhost.types import ChannelType

_PAGE = 1000
_TIMEOUT_S = 30.0
_SUCCESS = int(ReasonCode.SUCCESS)
_WORDS = (MASKED.encode(), FORBIDDEN.encode())


class Truth(msgspec.Struct):
    """Counts over a whole run. All but the first three are 0 when every promise was kept."""

    sent: int = 0
    acked: int = 0
    refused: int = 0
    unmoderated: int = 0
    """Stored, delivered or accepted with a word that the guard masks or refuses."""
    lost: int = 0
    """Acknowledged and not stored under the ids of its SENDACK."""
    repeated: int = 0
    """Stored twice, or delivered twice over one connection."""
    disordered: int = 0
    """A sender's messages stored or first delivered in another order, or a gap in message_seq."""
    refused_but_stored: int = 0
    unanswered: int = 0
    """Neither accepted nor refused when the run had settled."""

    @property
    def broken(self) -> list[str]:
        """Return the names of promises that were not kept."""
        names = ("unmoderated", "lost", "repeated", "disordered", "refused_but_stored")
        return [name for name in (*names, "unanswered") if getattr(self, name)]


async def find_truth(traffic: Traffic, server: Server) -> Truth:
    """Read every chat back from the running server and compare. Raises BenchError."""
    fates = traffic.fates
    truth = Truth(
        sent=len(fates),
        acked=sum(fate.reason == _SUCCESS for fate in fates),
        refused=sum(fate.reason not in (0, _SUCCESS) for fate in fates),
        unanswered=sum(not fate.reason for fate in fates),
    )
    truth.unmoderated += sum(fate.forbidden and fate.reason == _SUCCESS for fate in fates)
    chats: dict[tuple[str, str], list[Fate]] = defaultdict(list)
    for fate in fates:
        chats[fate.uid, fate.peer].append(fate)
    async with httpx.AsyncClient(
        base_url=server.http_url, timeout=_TIMEOUT_S, trust_env=False
    ) as http:
        for (uid, peer), sent in chats.items():
            _compare(truth, sent, await _history(http, uid, peer))
    _check_deliveries(truth, traffic)
    return truth


def _compare(truth: Truth, sent: list[Fate], stored: list[dict[str, Any]]) -> None:
    rows = [(row["client_msg_no"], row["message_id"]) for row in stored]
    names = [name for name, _ in rows]
    known = set(rows)
    truth.unmoderated += sum(_is_unmoderated(base64.b64decode(row["payload"])) for row in stored)
    truth.repeated += len(names) - len(set(names))
    truth.lost += sum(
        fate.reason == _SUCCESS and (fate.name, fate.message_id) not in known for fate in sent
    )
    refused = {fate.name for fate in sent if fate.reason not in (0, _SUCCESS)}
    truth.refused_but_stored += len(refused & set(names))
    truth.disordered += sum(after < before for before, after in pairwise(names))
    seqs = [row["message_seq"] for row in stored]
    truth.disordered += seqs != list(range(1, len(seqs) + 1))


def _check_deliveries(truth: Truth, traffic: Traffic) -> None:
    seen: dict[tuple[str, int], set[int]] = defaultdict(set)
    last: dict[tuple[str, int], int] = {}
    for each in traffic.deliveries:
        key = each.to_uid, each.life
        truth.unmoderated += _is_unmoderated(each.payload)
        if each.message_id in seen[key]:
            truth.repeated += 1
            continue
        seen[key].add(each.message_id)
        truth.disordered += each.number < last.get(key, 0)
        last[key] = each.number


def _is_unmoderated(payload: bytes) -> bool:
    return any(word in payload for word in _WORDS)


async def _history(http: httpx.AsyncClient, uid: str, peer: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        body = {
            "login_uid": uid,
            "channel_id": peer,
            "channel_type": int(ChannelType.PERSON),
            "start_message_seq": found[-1]["message_seq"] + 1 if found else 1,
            "end_message_seq": 0,
            "limit": _PAGE,
            "pull_mode": 1,
        }
        answer = await http.post("/channel/messagesync", json=body)
        if answer.status_code != httpx.codes.OK:
            raise BenchError(f"/channel/messagesync answered {answer.status_code}: {answer.text}")
        page = answer.json()["messages"]
        found += page
        if len(page) < _PAGE:
            return found
