"""Which hosts a plugin may name and which addresses it may reach, whatever way they are written."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.plugin_host.egress_rules import (
    EgressRefusedError,
    EgressRules,
    Target,
    normal_host,
    own_addresses,
    parse_private,
    parse_target,
    refusal,
    split_authority,
)

RULES = EgressRules(tuple(map(parse_target, ("api.example.com:443", "*.example.org:8443"))))


@pytest.mark.parametrize(
    "authority",
    ["api.example.com:443", "API.Example.COM:443", "api.example.com.:443", "a.b.example.org:8443"],
)
def test_what_is_listed_is_allowed_however_it_is_spelt(authority: str) -> None:
    RULES.check_name(authority)


@pytest.mark.parametrize(
    "authority",
    [
        "api.example.com:80",
        "api.example.com:8443",
        "example.org:8443",
        "evilexample.org:8443",
        "x.example.org.evil.com:8443",
        "api.example.com.evil.com:443",
        "user@api.example.com:443",
        "api.example.com@evil.com:443",
        "evil.com#api.example.com:443",
        "evil.com/api.example.com:443",
        "evil.com?.example.org:8443",
        "evil.com\\.example.org:8443",
        "evil.com\x00.example.org:8443",
        "evil.com%00.example.org:8443",
        "evil.com\r\n.example.org:8443",
        " api.example.com:443",
        "api.example.com :443",
        "api.example.com",
        "api.example.com:",
        "api.example.com:0443",
        "api.example.com:443:443",
        "api..example.com:443",
        ".example.org:8443",
        "-x.example.org:8443",
        "api.example.com..:443",
        "ａpi.example.com:443",
        "api。example.com:443",
        "[api.example.com]:443",
        "127.0.0.1:443",
        "[::1]:443",
        "2130706433:443",
        "",
        ":443",
    ],
)
def test_what_is_not_listed_or_odd_is_refused(authority: str) -> None:
    with pytest.raises(EgressRefusedError):
        RULES.check_name(authority)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.0.0.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("0XA9FEA9FE", "169.254.169.254"),
        ("0", "0.0.0.0"),
        ("::ffff:127.0.0.1", "::ffff:7f00:1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ],
)
def test_every_way_to_write_an_address_becomes_that_address(text: str, address: str) -> None:
    assert ip_address(normal_host(text)) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "08.1.1.1", "a.1", "1.2.3.0x", "4294967296"],
)
def test_what_ends_in_a_number_is_an_address_or_nothing(text: str) -> None:
    if text == "1.2.3.0x":
        assert normal_host(text) == "1.2.3.0"
        return
    with pytest.raises(EgressRefusedError):
        normal_host(text)


@pytest.mark.parametrize("text", ["fe80::1%eth0", "::g", "1::2::3", ":::"])
def test_odd_ipv6_is_refused(text: str) -> None:
    with pytest.raises(EgressRefusedError):
        normal_host(text)


@given(st.text(max_size=60))
def test_any_text_has_one_normal_form_or_none(text: str) -> None:
    try:
        host = normal_host(text)
    except EgressRefusedError:
        return
    assert normal_host(host) == host
    assert host == host.lower()
    assert not set(host) & set(" @/?#\\%\x00\r\n[]")
    assert not host.endswith(".")


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.lists(st.sampled_from("doxX"), min_size=4))
def test_numbers_are_read_as_the_c_library_reads_them(
    value: int, parts: int, forms: list[str]
) -> None:
    """The resolver behind the proxy must not see another address than the one that was checked."""
    numbers = [(value >> (8 * (3 - place))) & 255 for place in range(parts - 1)]
    numbers.append(value & (256 ** (5 - parts) - 1))
    write: dict[str, Callable[[int], str]] = {
        "d": str,
        "o": lambda n: f"0{n:o}",
        "x": hex,
        "X": lambda n: f"0X{n:X}",
    }
    text = ".".join(write[form](number) for form, number in zip(forms, numbers, strict=False))
    expected = socket.inet_ntoa(socket.inet_aton(text))
    assert normal_host(text) == expected


@given(
    st.text("0123456789abcdefxX.", min_size=1, max_size=20).filter(lambda text: text[-1] != "."),
)
def test_whatever_the_c_library_takes_for_an_address_is_one_here(text: str) -> None:
    try:
        expected = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        return
    assert normal_host(text) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("::", "::1", "::7f00:1", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::7f00:1"),
        *("64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::", "2001::1"),
        *("fc00::1", "fd00::1", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
        "fd00:ec2::254",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert refusal(ip_address(address), ())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "9.9.9.9"])
def test_public_addresses_are_not_refused(address: str) -> None:
    assert refusal(ip_address(address), ()) == ""


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_that_the_standard_library_calls_private_gets_through(
    address: IPv4Address | IPv6Address,
) -> None:
    if not refusal(address, ()):
        assert address.is_global
        kinds = ("private", "loopback", "link_local", "multicast", "reserved", "unspecified")
        assert [kind for kind in kinds if getattr(address, f"is_{kind}")] == []


def test_the_machines_own_addresses_are_refused_public_ones_too() -> None:
    own = own_addresses()
    assert ip_address("127.0.0.1") in own
    public = ip_address("8.8.8.8")
    assert refusal(public, frozenset({public})) == "an address of this machine"


def test_one_bad_address_refuses_the_name() -> None:
    good, bad = ip_address("8.8.8.8"), ip_address("10.0.0.1")
    RULES.check_addresses("api.example.com", 443, [good], ())
    with pytest.raises(EgressRefusedError, match="private"):
        RULES.check_addresses("api.example.com", 443, [good, bad], ())
    with pytest.raises(EgressRefusedError, match="no address"):
        RULES.check_addresses("api.example.com", 443, [], ())


@pytest.mark.parametrize(
    ("entry", "address", "port", "opened"),
    [
        ("10.0.0.5:8443", "10.0.0.5", 8443, True),
        ("10.0.0.5:8443", "10.0.0.5", 443, False),
        ("10.0.0.5", "10.0.0.5", 1, True),
        ("10.0.0.0/24", "10.0.0.99", 443, True),
        ("10.0.0.0/24", "10.0.1.1", 443, False),
        ("10.0.0.0/24:443", "10.0.0.1", 443, True),
        ("[fd00::5]:443", "fd00::5", 443, True),
        ("fd00::5", "fd00::5", 9, True),
        ("127.0.0.1", "::ffff:127.0.0.1", 443, False),
    ],
)
def test_the_operator_opens_what_is_written_and_no_more(
    entry: str, address: str, port: int, opened: bool
) -> None:
    rules = EgressRules((), (parse_private(entry),))
    if opened:
        rules.check_addresses("x", port, [ip_address(address)], ())
    else:
        with pytest.raises(EgressRefusedError):
            rules.check_addresses("x", port, [ip_address(address)], ())


@pytest.mark.parametrize("text", ["*.com:443", "*.1.2.3.4:443", "*:443", "a.*.b:443", "x", "x:0"])
def test_wide_or_odd_entries_of_a_list_are_refused(text: str) -> None:
    with pytest.raises(EgressRefusedError):
        parse_target(text)


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0.5:x", "[::1]:99999", "host:443"])
def test_odd_entries_of_the_operator_are_refused(text: str) -> None:
    with pytest.raises(EgressRefusedError):
        parse_private(text)


def test_entries_are_shown_as_they_are_meant() -> None:
    assert str(parse_target("*.Example.ORG:443")) == "*.example.org:443"
    assert str(parse_target("[2606:4700::1]:443")) == "[2606:4700::1]:443"
    assert parse_target("0x8.8.8.8:53") == Target("8.8.8.8", 53)
    assert split_authority("[::1]:5") == ("::1", 5)
