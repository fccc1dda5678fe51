"""The smallest program that our sections fit into: a stub for tests that start no machine."""

from __future__ import annotations

import struct

from p2p_bootstrap.boot import pe, uki

KNOWN = b"\0".join(
    name.encode() for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".pcrpkey")
)


def stub(text: bytes = KNOWN + b"\0", *, room: int = 16, trailing: bytes = b"") -> bytes:
    """A program with one section, as small as the format allows."""
    headers = bytearray(b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0")
    headers += struct.pack("<HHIIIHH", 0x8664, 1, 0, 99, 3, 240, 0x22)
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<IIHH", optional, 32, 4096, 512, 0, 0)
    struct.pack_into("<II", optional, 56, 8192, 64 + 24 + 240 + 40 * room)
    headers += optional
    first = len(headers) + 40 * room
    stored = text + bytes(-len(text) % 512)
    headers += struct.pack("<8sIIIIIIHHI", b".data", len(text), 4096, len(stored), first, 0, 0, 0, 0, pe.DATA)
    return bytes(headers) + bytes(first - len(headers)) + stored + trailing


PARTS = uki.Parts(
    stub=stub(), kernel=b"k" * 700, cmdline="quiet rd.immucore.uki", os_release=b"ID=x\n",
    initrds=(b"abc", b"defgh"), uname="6.1",
)  # fmt: skip
