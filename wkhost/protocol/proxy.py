"""The PROXY protocol header that a load balancer puts before a client's first byte.

Source: the PROXY protocol, versions 1 (one text line) and 2 (binary).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from wkhost.errors import RemoteProtocolError

_V1 = b"PROXY "
_V1_MAX_BYTES = 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD_BYTES = 16
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


class ProxyHeader(msgspec.Struct, frozen=True):
    """`size` bytes of header; `address` is (host, port) of the client, None if it names none."""

    size: int
    address: tuple[str, int] | None


NO_HEADER = ProxyHeader(0, None)


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the start of `data`; NO_HEADER if another thing stands there.

    Returns None while `data` could still become a header. Raises RemoteProtocolError for one that
    is malformed.
    """
    if data.startswith(_V1):
        return _parse_v1(data)
    if data.startswith(_V2):
        return _parse_v2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    return NO_HEADER


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_MAX_BYTES)
    if end < 0:
        if len(data) >= _V1_MAX_BYTES:
            raise RemoteProtocolError("PROXY v1: the line does not end within 107 bytes")
        return None
    try:
        words = data[:end].decode("ascii").split(" ")
        if words[1] == "UNKNOWN":
            return ProxyHeader(end + 2, None)
        family, source, _, port, _ = words[1:]
        if family not in ("TCP4", "TCP6"):
            raise ValueError(f"unknown family {family}")
        return ProxyHeader(end + 2, (str(ip_address(source)), _port(port)))
    except ValueError as e:
        raise RemoteProtocolError(f"PROXY v1: {e}") from e


def _port(text: str) -> int:
    port = int(text) if text.isdigit() and len(text) <= 5 else -1
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"{text!r} is no port")
    return port


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD_BYTES:
        return None
    command, family = data[12], data[13]
    if command not in (_V2_LOCAL, _V2_PROXY):
        raise RemoteProtocolError(f"PROXY v2: unknown version and command {command:#x}")
    size = _V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if len(data) < size:
        return None
    if command == _V2_LOCAL or family not in (_TCP4, _TCP6):
        return ProxyHeader(size, None)
    body = data[_V2_HEAD_BYTES:size]
    host_bytes = 4 if family == _TCP4 else 16
    if len(body) < 2 * host_bytes + 4:
        raise RemoteProtocolError("PROXY v2: the addresses are too short")
    host = (IPv4Address if family == _TCP4 else IPv6Address)(body[:host_bytes])
    port = int.from_bytes(body[2 * host_bytes : 2 * host_bytes + 2], "big")
    return ProxyHeader(size, (str(host), port))
