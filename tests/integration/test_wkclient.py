"""The test client itself, against a small echo server made of the protocol core."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.kit.protocol_pair import NOW_MS, make_server
from tests.kit.wkclient import ConnectionLostError, TestClient
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import (
    Connect,
    Disconnect,
    Packet,
    Ping,
    Recv,
    Send,
    Sendack,
    Sub,
    Suback,
)
from wkhost.protocol.recv_frames import RecvFrames


async def echo(seen: list[Packet], stream: trio.SocketStream) -> None:
    """Accept every login but that of `nobody`; send each message back before its SENDACK."""
    conn = make_server()
    async with stream:
        async for data in stream:
            for packet in conn.receive(bytes(data)):
                seen.append(packet)
                match packet:
                    case Connect(uid="nobody"):
                        await stream.send_all(conn.refuse(2))
                        return
                    case Connect():
                        await stream.send_all(conn.accept(NOW_MS))
                    case Send(payload=bytes() as payload):
                        recv = Recv(
                            message_id=100 + packet.client_seq,
                            message_seq=packet.client_seq,
                            timestamp=NOW_MS // 1000,
                            from_uid=conn.uid,
                            channel_id=packet.channel_id,
                            channel_type=packet.channel_type,
                            client_msg_no=packet.client_msg_no,
                            payload=payload,
                            flags=packet.flags,
                        )
                        ack = Sendack(packet.client_seq, recv.message_id, recv.message_seq, 1)
                        await stream.send_all(conn.recv_frame(RecvFrames(recv)))
                        await stream.send_all(conn.sendack(ack))
                    case Ping():
                        await stream.send_all(conn.pong())
                    case Sub():
                        ids = packet.sub_no, packet.channel_id, packet.channel_type
                        await stream.send_all(conn.suback(Suback(*ids, packet.action, 1)))
                    case Disconnect():
                        return


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("version", [1, 4, 5])
async def test_a_client_talks_over_tcp(form: Form, version: int) -> None:
    seen: list[Packet] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(echo, seen), 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            port = listener.socket.getsockname()[1]
            async with await TestClient.connect(
                "127.0.0.1", port, "u1", version=version, form=form
            ) as client:
                assert client.connack.reason_code == 1
                ack = await client.send("g1", 2, b"hello", flags=2)
                assert (ack.reason_code, ack.message_id) == (1, 101)
                recv = await client.recv()
                assert (recv.payload, recv.flags, recv.message_id) == (b"hello", 2, 101)
                first = await client.post("g1", 2, b"a")
                second = await client.post("g1", 2, b"b")
                assert (await client.sendack(second)).message_id == 103
                assert (await client.sendack(first)).message_id == 102
                await client.ping()
                sub = Sub("s", "d1", 7, 0)
                assert (await client.subscribe(sub)).reason_code == 1
                await client.write(client.conn.disconnect())
                left = await client.wait_closed()
                assert [p.payload for p in left if isinstance(p, Recv)] == [b"a", b"b"]
            refused = await TestClient.connect("127.0.0.1", port, "nobody", form=form)
            assert refused.connack.reason_code == 2
            with pytest.raises(ConnectionLostError):
                await refused.recv()
            await refused.close()
            nursery.cancel_scope.cancel()
    assert [type(p).__name__ for p in seen].count("Recvack") == 1
