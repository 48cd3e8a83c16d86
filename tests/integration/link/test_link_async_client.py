"""The link's asyncio client against a real server: pipelining, loss, reconnecting, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from tests.kit.fake_service import FakeService
from tests.kit.link_server import API_TOKEN, serve_link
from wkhost.link import contract
from wkhost.link.client_async import AsyncLinkClient
from wkhost.link.errors import LinkBusyError, LinkLostError, LinkRefusedError
from wkhost.link.server import LinkServer

T = TypeVar("T")
Use = Callable[[AsyncLinkClient], Awaitable[T]]


async def use_client(
    path: Path,
    use: Use[T],
    *,
    token: str = API_TOKEN,
    timeout_s: float = 5.0,
    max_in_flight: int = 100_000,
) -> T:
    """Run `use` with a connected client on an asyncio loop of its own, in a thread."""

    async def main() -> T:
        client = AsyncLinkClient(
            path,
            role=contract.API_WORKER,
            token=token,
            timeout_s=timeout_s,
            max_in_flight=max_in_flight,
        )
        running = asyncio.create_task(client.run())
        try:
            connected = asyncio.create_task(client.wait_connected())
            await asyncio.wait((running, connected), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                connected.cancel()
                running.result()
            return await use(client)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, LinkRefusedError):
                await running

    return await trio.to_thread.run_sync(partial(asyncio.run, main()))


def send(number: int) -> contract.SendMessage:
    return contract.SendMessage("u", "g", 2, b"p", client_msg_no=str(number))


async def test_pipelined_requests_each_get_their_own_answer() -> None:
    async def use(client: AsyncLinkClient) -> list[contract.Response]:
        health = client.ask(contract.GetHealth())
        sends = [client.ask(send(n)) for n in range(3000)]
        assert await health == contract.Health(ok=True)
        return await asyncio.gather(*sends)

    async with serve_link() as (path, server):
        answers = await use_client(path, use)
        assert server.statistics()["requests"] == 3001
    numbers = [a.client_msg_no for a in answers if isinstance(a, contract.Sent)]
    assert numbers == [str(n) for n in range(3000)]


async def test_a_wrong_token_ends_the_client_with_the_reason() -> None:
    async def use(client: AsyncLinkClient) -> None:
        raise AssertionError

    async with serve_link() as (path, _):
        with pytest.raises(LinkRefusedError, match="wrong token"):
            await use_client(path, use, token="guess")


async def test_a_lost_link_fails_what_is_in_flight_and_then_comes_back() -> None:
    first, second = FakeService(), FakeService()
    first.hold_sends = True

    async def use(client: AsyncLinkClient) -> contract.Response:
        in_flight = client.ask(send(1))
        with pytest.raises(LinkLostError) as lost:
            await in_flight
        assert lost.value.sent
        with pytest.raises(LinkLostError) as unsent:
            await client.ask(send(2))
        assert not unsent.value.sent
        await client.wait_connected()
        return await client.ask(send(3))

    answers: list[contract.Response] = []
    async with serve_link(second) as (path, _):  # only its directory is used at first
        away = path.with_name("away")
        server = LinkServer(away, first, api_token=API_TOKEN)
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                answers.append(await use_client(away, use))

            async with trio.open_nursery() as serving:
                await serving.start(server.run)
                nursery.start_soon(client)
                with trio.fail_after(5):
                    while not first.held:  # noqa: ASYNC110 - the fake has no event for it
                        await trio.sleep(0.005)
                serving.cancel_scope.cancel()
            again = LinkServer(away, second, api_token=API_TOKEN)
            async with trio.open_nursery() as serving:
                await serving.start(again.run)
                with trio.fail_after(5):
                    while not answers:  # noqa: ASYNC110 - filled from another loop
                        await trio.sleep(0.005)
                serving.cancel_scope.cancel()
    assert isinstance(answers[0], contract.Sent)
    assert [r for r in second.seen if isinstance(r, contract.SendMessage)] == [send(3)]


async def test_no_answer_in_time_is_lost_and_a_late_one_harms_nobody() -> None:
    service = FakeService()
    service.hold_sends = True

    async def use(client: AsyncLinkClient) -> None:
        with pytest.raises(LinkLostError, match=r"within 0.1 s"):
            await client.ask(send(1))
        service.hold_sends = False
        trio.from_thread.run_sync(service.release)
        assert isinstance(await client.ask(send(2)), contract.Sent)

    async with serve_link(service) as (path, _):
        await use_client(path, use, timeout_s=0.1)


async def test_over_its_bounds_the_client_refuses_instead_of_queueing() -> None:
    service = FakeService()
    service.hold_sends = True

    async def use(client: AsyncLinkClient) -> None:
        waiting = [client.ask(send(n)) for n in range(10)]
        with pytest.raises(LinkBusyError):
            client.ask(send(10))
        while len(service.held) < 10:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.005)
        service.hold_sends = False
        trio.from_thread.run_sync(service.release)
        await asyncio.gather(*waiting)
        assert isinstance(await client.ask(send(11)), contract.Sent)

    async with serve_link(service) as (path, _):
        await use_client(path, use, max_in_flight=10)
