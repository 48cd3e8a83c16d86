"""The hook call that both ways of asking a plugin carry, and what one way of asking cost."""

from __future__ import annotations

import msgspec

from wkhost.bench.samples import Percentiles
from wkhost.hooks.target import SendCall, SendOrigin
from wkhost.types import ChannelType, Message

BUDGET_S = 30.0
PAYLOAD = b'{"type":1,"content":"' + b"x" * 105 + b'"}'
"""128 bytes."""
MESSAGE = Message(
    message_id=1_234_567_890_123_456_789,
    channel_id="u10000002@u10000001",
    channel_type=int(ChannelType.PERSON),
    from_uid="u10000001",
    client_msg_no="5f0c2c1e9a5b4d6c8e7f00112233445566",
    payload=PAYLOAD,
)
ORIGIN = SendOrigin(door="client", conn_id=1000, device_id="bench-device", device_flag=1)


def send_call(call_id: int, now: float) -> SendCall:
    """Return a call issued `now`."""
    return SendCall(call_id, MESSAGE, ORIGIN, now + BUDGET_S)


class CallFigures(msgspec.Struct, frozen=True):
    """One way of asking at one number of calls in flight. CPU in microseconds per call."""

    calls: int
    calls_per_s: float
    call_ms: Percentiles
    cpu_us_caller: float
    """The host's side, the loop that makes the calls included."""
    cpu_us_plugin: float
    mean_batch: float
