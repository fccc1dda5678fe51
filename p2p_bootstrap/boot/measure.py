"""Which value will PCR 11 have when this unified kernel image runs? The TPM's arithmetic, without a TPM.

systemd's stub extends PCR 11 for each section that it knows and that is there: first the hash of its name
with a NUL, then the hash of its content (`predict`). A policy bound to that value opens a secret only for
this image; a signed policy (`.pcrsig`: `policy`, `signature_json`) for every image that the key signed for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from p2p_bootstrap.boot import pe

PCR: Final = 11
# the order of measuring, not of the file; .pcrsig is left out, for it depends on the value
MEASURED: Final = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".profile",
)  # fmt: skip
BANKS: Final = ("sha1", "sha256", "sha384", "sha512")
_ALGORITHM: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
_POLICY_PCR: Final = 0x0000017F


def extend(value: bytes, data: bytes, bank: str) -> bytes:
    """What a PCR holds after `data` was measured into it."""
    return hashlib.new(bank, value + hashlib.new(bank, data).digest()).digest()


def zero(bank: str) -> bytes:
    """What a PCR holds after a reset."""
    return bytes(hashlib.new(bank).digest_size)


def measured(image: bytes) -> tuple[tuple[str, bytes], ...]:
    """(name, content) of the sections that the stub in `image` measures, in its order.

    Older stubs know fewer sections; what a stub knows stands in it as text.
    """
    table = pe.sections(image)
    present = {section.name: section for section in table}
    stub = b"".join(pe.content(image, s) for s in table if not s.name.startswith(MEASURED))
    return tuple(
        (name, pe.content(image, present[name]))
        for name in MEASURED
        if name in present and name.encode() + b"\0" in stub
    )


def predict(image: bytes, bank: str = "sha256", phases: Sequence[str] = ()) -> str:
    """PCR 11 in hexadecimal digits, after the stub and after the phases of the boot that extend it too."""
    value = zero(bank)
    for name, data in measured(image):
        value = extend(value, name.encode() + b"\0", bank)
        value = extend(value, data, bank)
    for phase in phases:
        value = extend(value, phase.encode(), bank)
    return value.hex()


def policy(value: str, bank: str = "sha256") -> bytes:
    """The digest of the TPM policy "PCR 11 of this bank has this value" (TPM2_PolicyPCR, SHA-256 session)."""
    values = hashlib.sha256(bytes.fromhex(value)).digest()
    return hashlib.sha256(bytes(32) + struct.pack(">I", _POLICY_PCR) + selection(bank) + values).digest()


def selection(bank: str) -> bytes:
    """PCR 11 of a bank, as a TPM wants it written (TPML_PCR_SELECTION)."""
    return struct.pack(">IHB3s", 1, _ALGORITHM[bank], 3, (1 << PCR).to_bytes(3, "little"))


def signature_json(rows: Sequence[tuple[str, bytes, bytes]], public_der: bytes) -> bytes:
    """The content of `.pcrsig`. `rows`: (bank, policy digest, its signature); `public_der`: of the key."""
    found: dict[str, list[dict[str, Any]]] = {}
    for bank, digest, signature in rows:
        found.setdefault(bank, []).append(
            {"pcrs": [PCR], "pkfp": hashlib.sha256(public_der).hexdigest(), "pol": digest.hex(),
             "sig": base64.b64encode(signature).decode()}
        )  # fmt: skip
    return json.dumps(found, sort_keys=True).encode()
