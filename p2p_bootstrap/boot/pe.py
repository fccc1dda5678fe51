"""What is inside an EFI program, and how do sections get into one? PE/COFF (PE32+), read and written.

A unified kernel image is the stub with more sections: `add` puts them behind the stub's own. Same input, same
bytes: no time, no name of a machine. What is read may be anybody's file: every offset is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2p_network.core.errors import BootError

MAX_BYTES: Final = 2 << 30
MAX_SECTIONS: Final = 96  # the format's own limit
DATA: Final = 0x40000040  # initialised data, readable
CODE: Final = 0x60000020  # code, readable, executable
_PE32_PLUS: Final = 0x20B
_ROW: Final = struct.Struct("<8sIIIIIIHHI")
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the section table. Offsets and sizes in bytes; `size_bytes` is the size in memory."""

    name: str
    address: int
    size_bytes: int
    offset: int
    stored_bytes: int
    flags: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the headers' fields are."""

    coff: int
    optional: int
    table: int
    count: int
    section_alignment: int
    file_alignment: int
    header_bytes: int


def sections(data: bytes) -> tuple[Section, ...]:
    """The section table. Raises BootError if this is no EFI program of 64 bits."""
    layout = _layout(data)
    found = []
    for number in range(layout.count):
        raw = _ROW.unpack_from(data, layout.table + number * _ROW.size)
        name = raw[0].rstrip(b"\0").decode("ascii", "replace")
        section = Section(name, raw[2], raw[1], raw[4], raw[3], raw[9])
        if section.offset + section.stored_bytes > len(data) or section.size_bytes > MAX_BYTES:
            raise _broken(f"its section {name} lies beyond its end")
        found.append(section)
    return tuple(found)


def content(data: bytes, section: Section) -> bytes:
    """What the firmware loads for a section: as many bytes as it has in memory."""
    stored = data[section.offset : section.offset + min(section.stored_bytes, section.size_bytes)]
    return stored + bytes(section.size_bytes - len(stored))


def is_signed(data: bytes) -> bool:
    """Whether a signature is attached (the certificate table of the optional header)."""
    layout = _layout(data)
    return any(data[layout.optional + 112 + 8 * 4 :][:8])


def add(data: bytes, new: Sequence[tuple[str, bytes]]) -> bytes:
    """The program with more sections, in their order. Raises BootError.

    A section that the program has already is replaced: it loses its name, its bytes stay.
    """
    layout, old = _layout(data), sections(data)
    if is_signed(data):
        raise BootError(
            "the stub is signed already", hint="take the stub without a signature; sign the result"
        )
    rows_end = layout.table + (layout.count + len(new)) * _ROW.size
    first = min((s.offset for s in old if s.stored_bytes), default=layout.header_bytes)
    if rows_end > min(first, layout.header_bytes) or layout.count + len(new) > MAX_SECTIONS:
        raise BootError(
            f"the stub's header has no room for {len(new)} more sections", hint="take systemd's stub"
        )
    end = max((s.address + s.size_bytes for s in old), default=0)
    step = max(_PAGE_BYTES, layout.section_alignment)
    # debug symbols behind the sections would be a gap, which firmwares and signers hash differently
    stored_end = max((s.offset + s.stored_bytes for s in old), default=layout.header_bytes)
    body = bytearray(_padded(data[:stored_end], layout.file_alignment))
    struct.pack_into("<II", body, layout.coff + 8, 0, 0)
    replaced = {name for name, _ in new}
    for number, section in enumerate(old):
        if section.name in replaced:
            struct.pack_into("8s", body, layout.table + number * _ROW.size, b".old")
    for number, (name, stored) in enumerate(new, start=layout.count):
        raw_name = name.encode("ascii")
        if not 1 < len(raw_name) <= 8 or not stored:
            raise BootError(
                f"{name!r} can't be a section", hint="a section's name has 2 to 8 letters, and content"
            )
        address = -(-end // step) * step
        flags = CODE if name == ".linux" else DATA  # older stubs run the kernel where it lies
        padded = _padded(stored, layout.file_alignment)
        row = _ROW.pack(raw_name, len(stored), address, len(padded), len(body), 0, 0, 0, 0, flags)
        body[layout.table + number * _ROW.size : layout.table + (number + 1) * _ROW.size] = row
        body += padded
        end = address + len(stored)
        if len(body) > MAX_BYTES:
            raise BootError("the image would be larger than 2 GiB", hint="put the root beside it, not inside")
    struct.pack_into("<H", body, layout.coff + 2, layout.count + len(new))
    image = -(-end // layout.section_alignment) * layout.section_alignment
    struct.pack_into("<I", body, layout.optional + 56, image)
    struct.pack_into("<I", body, layout.optional + 64, 0)
    struct.pack_into("<I", body, layout.optional + 64, _checksum(bytes(body)))
    return bytes(body)


def _layout(data: bytes) -> _Layout:
    if len(data) < 64 or data[:2] != b"MZ":
        raise _broken("it does not begin with MZ")
    (coff,) = struct.unpack_from("<I", data, 60)
    if coff > len(data) - 24 - 128 or data[coff : coff + 4] != b"PE\0\0":
        raise _broken("it has no PE header")
    coff += 4
    count, optional_bytes = (
        struct.unpack_from("<H", data, coff + 2)[0],
        struct.unpack_from("<H", data, coff + 16)[0],
    )
    optional = coff + 20
    table = optional + optional_bytes
    if optional_bytes < 112 + 8 * 5 or struct.unpack_from("<H", data, optional)[0] != _PE32_PLUS:
        raise _broken("it is none of 64 bits")
    if count > MAX_SECTIONS or table + count * _ROW.size > len(data):
        raise _broken("its section table lies beyond its end")
    section_alignment, file_alignment = struct.unpack_from("<II", data, optional + 32)
    (header_bytes,) = struct.unpack_from("<I", data, optional + 60)
    for alignment in (section_alignment, file_alignment):
        if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _broken("its alignment is no power of two")
    return _Layout(coff, optional, table, count, section_alignment, file_alignment, header_bytes)


def _broken(why: str) -> BootError:
    return BootError(f"this is no EFI program: {why}", hint="is it the right file, and whole?")


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


def _checksum(data: bytes) -> int:
    """The optional header's checksum: 16-bit words added with carry, plus the length."""
    padded = _padded(data, 4)
    total = sum(memoryview(padded).cast("I"))  # carries are folded below: the order does not matter
    total = (total & 0xFFFFFFFF) + (total >> 32)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)
