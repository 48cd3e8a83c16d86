"""What the kernel asks of a gateway: the `Outbox` of delivery/boundary.py over the connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from wkhost.errors import LocalProtocolError
from wkhost.gateway.client import ASKED, OPEN, Client
from wkhost.gateway.table import ConnectionTable
from wkhost.protocol.connection import Form
from wkhost.protocol.packets import Event, Recv, Sendack
from wkhost.protocol.recv_frames import RecvFrames
from wkhost.types import Flags

log = structlog.get_logger(__name__)
_NO_PERSIST = int(Flags.NO_PERSIST)


class GatewayOutbox:
    """Implements `Outbox`. Frames are encoded here and written by `flush`."""

    def __init__(self, table: ConnectionTable, wall_clock_ms: Callable[[], int]) -> None:
        self._table = table
        self._wall_clock_ms = wall_clock_ms
        self._accepted: list[Client] = []
        """Accepted, with the packets that came behind their CONNECT still to be taken."""

    def accept(self, conn_id: int) -> None:
        client = self._table.by_id.get(conn_id)
        if client is None or client.state != ASKED:
            return
        frame = client.conn.accept(self._wall_clock_ms())
        client.state = OPEN
        client.text = client.conn.form is Form.JSONRPC
        if self._table.queue(client, frame):
            self._accepted.append(client)
            self._table.wake()

    def refuse(self, conn_id: int, reason_code: int, text: str = "") -> None:
        client = self._table.by_id.get(conn_id)
        if client is not None and client.state == ASKED:
            self._refuse(client, reason_code, text)

    def _refuse(self, client: Client, reason_code: int, text: str) -> None:
        client.text = client.conn.form is Form.JSONRPC
        frame = client.conn.refuse(reason_code, text)
        if not frame or self._table.queue(client, frame):
            self._table.leave(client)

    def sendacks(self, batch: Sequence[tuple[int, Sendack]]) -> None:
        clients = self._table.by_id
        queue = self._table.queue
        for conn_id, sendack in batch:
            client = clients.get(conn_id)
            if client is not None and client.state == OPEN:
                frame = client.conn.sendack(sendack)
                if frame:
                    queue(client, frame)

    def recv(self, recv: Recv, conn_ids: Sequence[int]) -> None:
        clients = self._table.by_id
        queue = self._table.queue
        lossy = bool(recv.flags & _NO_PERSIST)
        taken = 0
        frames = RecvFrames(recv)
        try:
            for conn_id in conn_ids:
                client = clients.get(conn_id)
                if (
                    client is not None
                    and client.state == OPEN
                    and queue(client, client.conn.recv_frame(frames), lossy=lossy)
                ):
                    client.out_msgs += 1
                    taken += 1
        except LocalProtocolError as e:
            self._unencodable(e)
        self._table.statistics.out_msgs += taken

    def event(self, event: Event, conn_ids: Sequence[int]) -> None:
        clients = self._table.by_id
        try:
            for conn_id in conn_ids:
                client = clients.get(conn_id)
                if client is not None and client.state == OPEN:
                    frame = client.conn.event(event)
                    if frame:
                        self._table.queue(client, frame, lossy=True)
        except LocalProtocolError as e:
            self._unencodable(e)

    def _unencodable(self, error: LocalProtocolError) -> None:
        """What does not fit the wire fits nobody's: closing every receiver would help no one."""
        self._table.statistics.unencodable += 1
        log.error("message cannot be sent to clients", error=str(error))

    def disconnect(self, conn_id: int, reason_code: int, text: str, close_after_s: float) -> None:
        client = self._table.by_id.get(conn_id)
        if client is None or client.state != OPEN:
            self.close(conn_id, close_after_s)
            return
        if self._table.queue(client, client.conn.disconnect(reason_code, text)):
            self._table.close_after(client, close_after_s)

    def close(self, conn_id: int, after_s: float = 0.0) -> None:
        client = self._table.by_id.get(conn_id)
        if client is not None:
            self._table.close_after(client, after_s)

    def flush(self) -> None:
        self._table.flush()
