"""/health."""

from __future__ import annotations

import msgspec

from wkhost.api.answers import Answer, ApiError, json_answer
from wkhost.api.kernel import Kernel
from wkhost.link.contract import GetHealth, Health


class HealthAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`status` "ok" with 200, or "error" and a `message` with 500."""

    status: str
    message: str = ""


async def health(kernel: Kernel, body: None) -> Answer:
    try:
        state = await kernel.ask(GetHealth(), Health)
    except ApiError as error:
        return json_answer(HealthAnswer("error", error.msg), status=500)
    if state.ok:
        return json_answer(HealthAnswer("ok"))
    return json_answer(HealthAnswer("error", state.text), status=500)
