"""Who signs a unified kernel image, and the policies of its PCRs? The programs sbsign and openssl.

Keys never pass through us: the programs read them. A Secure Boot signature holds the time it was made, so a
signed image differs from one build to the next; what it signs does not.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from p2p_bootstrap.boot import measure
from p2p_network.core.errors import BootError


def sign_image(image: bytes, key: Path, certificate: Path) -> bytes:
    """The program with a Secure Boot signature, checked once more. Raises BootError."""
    with tempfile.TemporaryDirectory(prefix="kairos-p2p-uki-") as name:
        plain, signed = Path(name, "plain.efi"), Path(name, "signed.efi")
        plain.write_bytes(image)
        _run("sbsign", "sbsigntool", "--key", key, "--cert", certificate, "--output", signed, plain)
        _run("sbverify", "sbsigntool", "--cert", certificate, signed)
        return signed.read_bytes()


def sign_policies(image: bytes, key: Path, banks: Sequence[str], phases: Sequence[str] = ()) -> bytes:
    """The content of `.pcrsig` for an image that already has its `.pcrpkey`. Raises BootError."""
    public_der = _run("openssl", "openssl", "pkey", "-in", key, "-pubout", "-outform", "DER")
    rows = []
    for bank in banks:
        digest = measure.policy(measure.predict(image, bank, phases), bank)
        rows.append((bank, digest, _run("openssl", "openssl", "dgst", "-sha256", "-sign", key, data=digest)))
    return measure.signature_json(rows, public_der)


def public_key(key: Path) -> bytes:
    """The public half of a private key, as PEM: the content of `.pcrpkey`."""
    return _run("openssl", "openssl", "pkey", "-in", key, "-pubout")


def _run(program: str, package: str, *argv: str | Path, data: bytes = b"") -> bytes:
    path = shutil.which(program)
    if path is None:
        raise BootError(f"{program} is not on this machine", hint=f"install it: apt-get install {package}")
    done = subprocess.run([path, *map(str, argv)], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        text = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BootError(
            f"{program} failed: {text[-1] if text else done.returncode}",
            hint="are key and certificate PEM files that belong together?",
        )
    return done.stdout
