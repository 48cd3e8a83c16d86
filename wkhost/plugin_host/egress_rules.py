"""Which hosts and addresses a plugin may reach: names as they are written, addresses as they are.

A name is matched in one normal form before anyone looks it up. Every way of writing an IPv4 address
that a resolver would take (decimal, octal, hexadecimal, shortened) becomes that address here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import msgspec
import psutil

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_HOST = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")

_RESERVED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local, where cloud metadata is"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/96", "unspecified, loopback or IPv4-compatible"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("100::/64", "discard"),
    ("2001::/23", "protocol assignments, Teredo among them"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
_RESERVED_NETWORKS = [(ip_network(text), name) for text, name in _RESERVED]
"""Source: the IANA special-purpose address registries for IPv4 and IPv6."""


_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that IANA has given out of IPv6 for addressing hosts."""


class EgressRefusedError(Exception):
    """A host, a target or an address is not allowed; the text says why."""


class Target(msgspec.Struct, frozen=True):
    """One entry of an allow-list. `wildcard`: any name below `host`, not `host` itself."""

    host: str
    port: int
    wildcard: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'*.' if self.wildcard else ''}{host}:{self.port}"

    def covers(self, host: str, port: int) -> bool:
        """Whether `host`, in its normal form, and `port` are meant."""
        if port != self.port:
            return False
        if self.wildcard:
            return host.endswith("." + self.host)
        return host == self.host


class PrivateTarget(msgspec.Struct, frozen=True):
    """Addresses that the operator opens though they are not public. `port` 0: any."""

    network: str
    port: int = 0

    def covers(self, address: Address, port: int) -> bool:
        network = ip_network(self.network)
        same = network.version == address.version
        return same and self.port in (0, port) and address in network


def parse_target(text: str) -> Target:
    """Read `HOST:PORT` or `*.HOST:PORT` of an allow-list. Raises EgressRefusedError."""
    wildcard = text.startswith("*.")
    host, port = split_authority(text[2:] if wildcard else text)
    name = normal_host(host)
    if wildcard and address_of(name) is not None:
        raise EgressRefusedError(f"{text!a}: a wildcard needs a name, not an address")
    if wildcard and "." not in name:
        raise EgressRefusedError(f"{text!a}: a wildcard over a whole top-level domain")
    return Target(name, port, wildcard)


def parse_private(text: str) -> PrivateTarget:
    """Read `ADDRESS`, `ADDRESS/BITS`, either with `:PORT`, IPv6 in brackets then.

    Raises EgressRefusedError.
    """
    port = 0
    rest = text.strip()
    if rest.startswith("["):
        rest, _, tail = rest[1:].partition("]")
        port = _port(tail[1:]) if tail.startswith(":") else 0
    elif rest.count(":") == 1:
        rest, _, tail = rest.partition(":")
        port = _port(tail)
    try:
        network = ip_network(rest, strict=False)
    except ValueError:
        raise EgressRefusedError(
            f"{text!a}: expected an address such as 10.0.0.5:8443 or a network such as 10.0.0.0/24"
        ) from None
    return PrivateTarget(str(network), port)


def split_authority(text: str) -> tuple[str, int]:
    """Split `host:port`; an IPv6 address stands in brackets. Raises EgressRefusedError."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise EgressRefusedError(f"{text[:80]!a}: expected [ADDRESS]:PORT")
        if ":" not in host:
            raise EgressRefusedError(f"{text[:80]!a}: only IPv6 addresses stand in brackets")
        return host, _port(rest[1:])
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host:
        raise EgressRefusedError(f"{text[:80]!a}: expected HOST:PORT")
    return host, _port(port)


def normal_host(text: str) -> str:
    """Return the one form of a host: a lower-case name without a trailing dot, or an address.

    Refused: user information, non-ASCII names (their `xn--` form is taken), empty and odd labels,
    scoped addresses, numbers that are no address. Raises EgressRefusedError.
    """
    if not text.isascii():
        raise EgressRefusedError(f"{text[:80]!a}: expected ASCII, write the xn-- form of the name")
    if ":" in text:
        return _ipv6(text)
    host = text.lower().removesuffix(".")
    if not host or len(host) > MAX_HOST:
        raise EgressRefusedError(f"host: expected 1 to {MAX_HOST} characters")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return str(_ipv4(labels, text))
    for label in labels:
        if _LABEL.fullmatch(label) is None:
            raise EgressRefusedError(f"{text[:80]!a}: not a host name")
    return host


def address_of(host: str) -> Address | None:
    """Return the address that a host in its normal form is, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def refusal(address: Address, own: Iterable[Address]) -> str:
    """Return why an address is not public, or "" when it is."""
    for network, name in _RESERVED_NETWORKS:
        if network.version == address.version and address in network:
            return name
    if address in own:
        return "an address of this machine"
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return "reserved"
    # What the registries add after this was written.
    return "" if address.is_global and not address.is_multicast else "not public"


def own_addresses() -> frozenset[Address]:
    """Return every address of this machine now."""
    found = set()
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            host = str(entry.address).partition("%")[0]
            parsed = address_of(host)
            if parsed is not None:
                found.add(parsed)
    return frozenset(found)


class EgressRules(msgspec.Struct, frozen=True):
    """One plugin's allow-list with what the operator opens besides."""

    allowed: tuple[Target, ...]
    private: tuple[PrivateTarget, ...] = ()

    def check_name(self, authority: str) -> tuple[str, int, Target]:
        """Return host and port in normal form, and the entry that lists them. Raises
        EgressRefusedError."""
        host, port = split_authority(authority)
        host = normal_host(host)
        for target in self.allowed:
            if target.covers(host, port):
                return host, port, target
        raise EgressRefusedError(f"{_shown(host, port)}: not in the allow-list")

    def check_addresses(
        self, host: str, port: int, addresses: Sequence[Address], own: Iterable[Address]
    ) -> None:
        """Refuse the name if any of its addresses is refused. Raises EgressRefusedError."""
        if not addresses:
            raise EgressRefusedError(f"{_shown(host, port)}: has no address")
        own = frozenset(own)
        for address in addresses:
            reason = refusal(address, own)
            if reason and not any(each.covers(address, port) for each in self.private):
                raise EgressRefusedError(
                    f"{_shown(host, port)}: its address {address} is refused ({reason})"
                )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or int(text) > 65535:
        raise EgressRefusedError(f"port: expected 1 to 65535, got {text[:20]!a}")
    return int(text)


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise EgressRefusedError(f"{text[:80]!a}: not an IPv6 address") from None
    if address.scope_id is not None:
        raise EgressRefusedError(f"{text[:80]!a}: scoped addresses are refused")
    return str(address)


def _ipv4(labels: list[str], text: str) -> IPv4Address:
    """Read an address as resolvers do: one to four numbers, the last filling what is left."""
    wrong = EgressRefusedError(f"{text[:80]!a}: ends in a number but is no IPv4 address")
    if len(labels) > 4:
        raise wrong
    numbers = []
    for label in labels:
        if _NUMBER.fullmatch(label) is None or len(label) > 24:
            raise wrong
        octal = label.startswith("0") and label != "0" and not label.startswith("0x")
        try:
            # A bare 0x is zero to resolvers.
            numbers.append(
                int(label[2:] or "0", 16)
                if label.startswith("0x")
                else int(label, 8 if octal else 10)
            )
        except ValueError:
            raise wrong from None
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise wrong
    value = numbers[-1]
    for place, number in enumerate(numbers[:-1]):
        value |= number << (8 * (3 - place))
    return IPv4Address(value)
