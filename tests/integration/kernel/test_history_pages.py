"""Pages of history, over the memory store: cut in bytes, complete when asked on."""

from __future__ import annotations

import pytest

from tests.kit.kernel import KernelKit, running_kernel
from wkhost.link.contract import MessagePage, SyncMessages

PAYLOAD_BYTES = 100_000
MESSAGES = 160


async def page(k: KernelKit, start: int, pull_mode: int) -> list[int]:
    answer = await k.ask(
        SyncMessages("a", "b", 1, start_message_seq=start, limit=1000, pull_mode=pull_mode)
    )
    assert isinstance(answer, MessagePage)
    seqs = [m.message_seq for m in answer.messages]
    assert seqs == list(range(seqs[0], seqs[-1] + 1))
    return seqs


@pytest.mark.parametrize("pull_mode", [0, 1])
async def test_a_large_page_is_cut_in_bytes_and_can_be_read_on(pull_mode: int) -> None:
    async with running_kernel() as k:
        a = k.connect("a")
        for i in range(MESSAGES):
            await k.ack(a, k.send(a, "b", b"x" * PAYLOAD_BYTES, client_msg_no=f"n{i}"))
        seen: list[int] = []
        start = 1 if pull_mode == 1 else MESSAGES
        while len(seen) < MESSAGES:
            seqs = await page(k, start, pull_mode)
            assert len(seqs) < MESSAGES, "the page was not cut"
            if pull_mode == 1:
                seen += seqs
                start = seqs[-1] + 1
            else:
                seen = seqs + seen
                start = seqs[0] - 1
        assert seen == list(range(1, MESSAGES + 1))
