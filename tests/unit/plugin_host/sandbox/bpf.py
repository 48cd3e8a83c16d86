"""A small interpreter of classic BPF, to ask a filter what it would do."""

from __future__ import annotations

import struct

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def decide(program: bytes, arch: int, number: int, *arguments: int) -> str:
    """Return "allow", "kill" or the errno as text."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number, arch, 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = position = 0
    while True:
        operation, yes, no, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x15:
                position += yes if accumulator == value else no
            case 0x35:
                position += yes if accumulator >= value else no
            case 0x45:
                position += yes if accumulator & value else no
            case 0x06:
                if value == ALLOW:
                    return "allow"
                return "kill" if value == KILL else str(value & 0xFFFF)
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")
