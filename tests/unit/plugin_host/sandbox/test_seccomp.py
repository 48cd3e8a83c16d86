"""What the system call filter decides, on both architectures."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from tests.unit.plugin_host.sandbox.bpf import decide
from wkhost.errors import PluginError
from wkhost.plugin_host.sandbox.seccomp import DENIED, SINGLE_PROCESS, build_filter
from wkhost.plugin_host.sandbox.syscalls import AUDIT_ARCH, LAST_KNOWN, TABLES

MACHINES = ["x86_64", "aarch64"]
EPERM, ENOSYS = str(errno.EPERM), str(errno.ENOSYS)
THREAD, NEW_USER = 0x3D0F00, 0x10000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


class Asked:
    """One filter, asked by name."""

    def __init__(self, machine: str, **options: object) -> None:
        self.arch = AUDIT_ARCH[machine]
        self.table = TABLES[machine]
        self.program = build_filter(machine=machine, **options)  # type: ignore[arg-type]

    def __call__(self, name: str, *arguments: int) -> str:
        return decide(self.program, self.arch, self.table[name], *arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("subprocesses", [False, True])
def test_the_denied_calls_are_denied_and_others_pass(machine: str, subprocesses: bool) -> None:
    ask = Asked(machine, subprocesses=subprocesses)
    assert {ask(name) for name in DENIED if name in ask.table} == {EPERM}
    named = set(ask.table.values())
    others = set(range(LAST_KNOWN + 1)) - named
    if machine == "x86_64":
        others -= {57, 58}
    assert {decide(ask.program, ask.arch, number, 1) for number in others} == {"allow"}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_single_process_makes_threads_and_nothing_else(machine: str) -> None:
    ask = Asked(machine, subprocesses=False)
    assert ask("clone", THREAD) == "allow"
    assert ask("clone", 17) == EPERM
    assert ask("clone", THREAD | NEW_USER) == EPERM
    assert ask("clone3") == ENOSYS
    assert {ask(name) for name in ("execve", *SINGLE_PROCESS) if name in ask.table} == {EPERM}


@pytest.mark.parametrize("machine", MACHINES)
def test_subprocesses_are_made_in_no_new_namespace(machine: str) -> None:
    ask = Asked(machine, subprocesses=True)
    assert ask("clone", 17) == ask("execve") == "allow"
    for bit in (0x00020000, 0x02000000, 0x04000000, 0x08000000, NEW_USER, 0x20000000, 0x40000000):
        assert ask("clone", 17 | bit) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_one_execve_passes_by_its_addresses(machine: str) -> None:
    at = (0x10_1234_5678, 0x20_1234_5678, 0x30_1234_5678)
    ask = Asked(machine, subprocesses=False, exec_at=at)
    assert ask("execve", *at) == "allow"
    for index in range(3):
        for change in (1, 1 << 32):
            wrong = list(at)
            wrong[index] += change
            assert ask("execve", *wrong) == EPERM
    assert ask("execveat", *at) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["socket", "socketpair"])
def test_sockets_by_family(machine: str, name: str) -> None:
    closed, inet = (
        Asked(machine, subprocesses=False),
        Asked(machine, subprocesses=False, internet=True),
    )
    refused = str(errno.EAFNOSUPPORT)
    allowed = {family for family in range(50) if closed(name, family) == "allow"}
    assert allowed == {1}
    assert {family for family in range(50) if inet(name, family) == "allow"} == {1, 2, 10}
    assert closed(name, 2) == inet(name, 16) == refused


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments(machine: str) -> None:
    ask = Asked(machine, subprocesses=True)
    assert ask("ioctl", 0, 0x5412) == ask("ioctl", 0, 0x5412 | 1 << 32) == EPERM
    assert ask("ioctl", 0, 0x5401) == "allow"
    assert ask("prctl", 4, 1) == EPERM
    assert ask("prctl", 15) == "allow"
    assert ask("prlimit64", 0, 7) == "allow"
    assert ask("prlimit64", 4711, 7) == EPERM


def test_other_doors_to_the_kernel() -> None:
    ask = Asked("x86_64", subprocesses=True)
    assert decide(ask.program, 0x40000003, 20) == "kill"
    assert decide(ask.program, AUDIT_ARCH["aarch64"], 20) == "kill"
    assert decide(ask.program, ask.arch, 0x40000000 | 1) == "kill"
    assert decide(ask.program, ask.arch, LAST_KNOWN + 1) == ENOSYS


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(PluginError, match="riscv64: expected one of x86_64, aarch64"):
        build_filter(subprocesses=False, machine="riscv64")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found: dict[str, int] = {}
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    for name, number in pattern.findall(header.read_text()):
        found.setdefault(name, int(number))
    known = {name: number for name, number in TABLES[machine].items() if name in found}
    assert len(known) > 70
    assert known == {name: found[name] for name in known}
