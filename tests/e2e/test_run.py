"""`wkhost run` as a whole process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.server import running_server
from tests.kit.wkclient import TestClient

pytestmark = pytest.mark.e2e


async def test_two_clients_chat_and_history_survives_a_restart(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        a = await TestClient.connect(*server.address(), "a")
        b = await TestClient.connect(*server.address(), "b")
        sendack = await a.send("b", 1, b'{"type":1,"content":"hi"}', client_msg_no="n1")
        assert (sendack.reason_code, sendack.message_seq) == (1, 1)
        assert (await b.recv()).payload == b'{"type":1,"content":"hi"}'
        await a.close()
        await b.close()
    async with running_server(tmp_path) as server:
        a = await TestClient.connect(*server.address(), "a")
        repeat = await a.send("b", 1, b"{}", client_msg_no="n1")
        assert (repeat.message_id, repeat.message_seq) == (sendack.message_id, 1)
        assert (await a.send("b", 1, b"{}", client_msg_no="n2")).message_seq == 2
        await a.close()
