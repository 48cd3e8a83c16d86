"""Frames survive any chunking; what is no frame of ours is a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.link import contract
from wkhost.link.errors import LinkProtocolError, LinkRefusedError
from wkhost.link.framing import (
    BATCH_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEM_BYTES,
    FrameReader,
    Hello,
    Welcome,
    check_welcome,
    encode_item,
    pack_batches,
    pack_handshake,
    read_hello,
    request_decoder,
)


def _sends(sizes: list[int]) -> list[contract.SendMessage]:
    return [contract.SendMessage("u", "g", 2, b"p" * size) for size in sizes]


@given(
    sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=20),
    chunk=st.integers(1, 700),
    split=st.integers(0, 20),
)
def test_batches_survive_any_chunking(sizes: list[int], chunk: int, split: int) -> None:
    requests = _sends(sizes)
    items = [encode_item(number, request) for number, request in enumerate(requests)]
    data = pack_batches(items[:split]) + pack_batches(items[split:])
    reader, decoder = FrameReader(), request_decoder()
    got: list[tuple[int, contract.Request]] = []
    for start in range(0, len(data), chunk):
        for body in reader.feed(data[start : start + chunk]):
            got += decoder.decode(body)
    assert got == list(enumerate(requests))


def test_a_batch_over_its_size_is_split_and_a_long_item_travels_alone() -> None:
    sizes = [100_000, 100_000, 100_000, 1_000_000, 10]
    items = [encode_item(n, request) for n, request in enumerate(_sends(sizes))]
    bodies = FrameReader().feed(pack_batches(items))
    batches = [[number for number, _ in request_decoder().decode(body)] for body in bodies]
    assert batches == [[0, 1], [2], [3], [4]]
    assert all(len(body) <= BATCH_BYTES for body in bodies[:2])


def test_the_longest_item_fits_a_frame() -> None:
    overhead = len(encode_item(0, contract.SendMessage("u", "g", 2, b"x" * 70_000))) - 70_000
    item = encode_item(0, contract.SendMessage("u", "g", 2, b"x" * (MAX_ITEM_BYTES - overhead)))
    assert len(item) == MAX_ITEM_BYTES
    assert len(FrameReader().feed(pack_batches((item,)))) == 1


def test_an_announced_length_over_the_limit_is_refused_before_the_bytes_come() -> None:
    with pytest.raises(LinkProtocolError, match="longer than"):
        FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


@given(st.binary(max_size=200))
def test_garbage_in_a_frame_is_a_typed_error(body: bytes) -> None:
    for read in (request_decoder().decode, read_hello, check_welcome):
        try:
            read(body)
        except LinkProtocolError:
            continue
        assert read != read_hello
        assert body[:1] in (b"\x90", b"\xdc", b"\xdd")  # the empty batch


def test_the_handshake_tells_welcome_from_refusal_and_from_another_version() -> None:
    def body(message: Hello | Welcome | contract.Error) -> bytes:
        return pack_handshake(message)[4:]

    check_welcome(body(Welcome(contract.LINK_PROTOCOL)))
    with pytest.raises(LinkRefusedError, match="go away"):
        check_welcome(body(contract.Error(contract.ErrorKind.FORBIDDEN, "go away")))
    with pytest.raises(LinkProtocolError, match="protocol 99"):
        check_welcome(body(Welcome(99)))
    assert read_hello(body(Hello(1, "api", "t"))) == Hello(1, "api", "t")
