"""Is a unified kernel image put together rightly, and is its PCR 11 foretold by the TPM's own arithmetic?"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import replace

import pytest
from tiny_stub import KNOWN, PARTS, stub

from p2p_bootstrap.boot import measure, pe, uki
from p2p_bootstrap.boot.entries import loader_files
from p2p_network.core.errors import BootError


def test_sections_are_added_behind_those_of_the_stub() -> None:
    made = uki.assemble(PARTS)
    found = {section.name: pe.content(made, section) for section in pe.sections(made)}
    assert list(found) == [".data", ".osrel", ".cmdline", ".uname", ".initrd", ".linux"]
    assert found[".initrd"] == b"abc\0defgh\0\0\0"  # each begins where the kernel looks for it
    assert found[".cmdline"] == b"quiet rd.immucore.uki"
    assert found[".data"].startswith(b".linux")
    ends = 0
    for section in pe.sections(made):
        assert section.address >= ends
        assert section.name == ".data" or section.offset % 512 == 0
        ends = section.address + section.size_bytes
    (size_of_image,) = struct.unpack_from("<I", made, 64 + 24 + 56)
    assert size_of_image >= ends
    assert uki.assemble(PARTS) == made
    # symbols behind the sections are cut off: a gap would be hashed by some and not by others
    assert uki.assemble(replace(PARTS, stub=stub(trailing=b"symbols" * 100))) == made


def test_a_section_of_the_stub_is_replaced_not_doubled() -> None:
    made = pe.add(stub(), [(".data", b"new")])
    assert [s.name for s in pe.sections(made)] == [".old", ".data"]


def test_pcr_11_is_what_a_tpm_would_make_of_it() -> None:
    made = uki.assemble(PARTS)
    value = bytes(32)
    for name, data in (
        (b".linux", b"k" * 700), (b".osrel", b"ID=x\n"), (b".cmdline", b"quiet rd.immucore.uki"),
        (b".initrd", b"abc\0defgh\0\0\0"), (b".uname", b"6.1"),
    ):  # fmt: skip
        for piece in (name + b"\0", data):
            value = hashlib.sha256(value + hashlib.sha256(piece).digest()).digest()
    assert measure.predict(made) == value.hex()
    entered = hashlib.sha256(value + hashlib.sha256(b"enter-initrd").digest()).hexdigest()
    assert measure.predict(made, phases=["enter-initrd"]) == entered
    assert len(measure.predict(made, "sha384")) == 96
    # an older stub doesn't know .uname, so it doesn't measure it; .pcrsig is measured by none
    older = uki.assemble(replace(PARTS, stub=stub(KNOWN.replace(b".uname", b".xname") + b"\0")))
    assert [name for name, _ in measure.measured(older)] == [".linux", ".osrel", ".cmdline", ".initrd"]
    keyed = replace(PARTS, public_key=b"PEM")
    assert measure.predict(uki.assemble(keyed)) == measure.predict(uki.assemble(keyed, b"signature"))


def test_the_signature_file_has_the_form_that_systemd_reads() -> None:
    value = measure.predict(uki.assemble(PARTS))
    digest = measure.policy(value)
    found = json.loads(measure.signature_json([("sha256", digest, b"sig")], b"DER"))
    assert found == {
        "sha256": [
            {"pcrs": [11], "pkfp": hashlib.sha256(b"DER").hexdigest(), "pol": digest.hex(),
             "sig": base64.b64encode(b"sig").decode()}
        ]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin with MZ"),
        (b"MZ" + bytes(300), "no PE header"),
        (stub()[:200], "no PE header"),
        (stub()[:-600], "beyond its end"),
        (stub(room=3), "no room"),
    ],
)
def test_what_is_no_stub_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BootError, match=why):
        uki.assemble(replace(PARTS, stub=data))


def test_parts_that_can_not_be_are_refused() -> None:
    for wrong, why in (
        (replace(PARTS, cmdline="x" * 2048), "2048 bytes"),
        (replace(PARTS, cmdline="a\nb"), "can't be passed"),
        (replace(PARTS, extra=((".linux", b"x"),)), "given twice"),
        (replace(PARTS, extra=((".muchtoolong", b"x"),)), "can't be a section"),
    ):
        with pytest.raises(BootError, match=why):
            uki.assemble(wrong)


def test_the_note_about_the_root_survives_and_damage_is_noticed() -> None:
    for beside in (False, True):
        note = uki.root_note(b"image", "squashfs", beside=beside)
        assert uki.parse_note(uki.render_note(note).decode()) == note
        archive = uki.root_initrd(note, b"image" * 100)
        assert (b"image" * 100 in archive) != beside
    assert note.path == f"/EFI/kairos-p2p/{hashlib.sha256(b'image').hexdigest()[:16]}.img"
    for wrong in ("", "{}", uki.render_note(note).decode().replace("/EFI", "/../EFI"), "[" * 9999):
        with pytest.raises(BootError, match="damaged"):
            uki.parse_note(wrong)


def test_the_switch_is_added_once() -> None:
    assert uki.with_switch("quiet") == "quiet rd.immucore.uki"
    assert uki.with_switch("rd.immucore.uki quiet") == "rd.immucore.uki quiet"


def test_entries_put_active_first_and_count_what_may_fail() -> None:
    found = {file.path: file.text for file in loader_files("my node", 3)}
    assert list(found)[1:] == [
        "/loader/entries/active+3.conf", "/loader/entries/passive+3.conf", "/loader/entries/recovery.conf",
        "/loader/entries/statereset.conf",
    ]  # fmt: skip
    keys = [text.split("sort-key ")[1].split()[0] for text in list(found.values())[1:]]
    assert keys == sorted(keys)
    assert "efi /EFI/kairos/active.efi\n" in found["/loader/entries/active+3.conf"]
    with pytest.raises(BootError, match="can't be counted"):
        loader_files("x", -1)
