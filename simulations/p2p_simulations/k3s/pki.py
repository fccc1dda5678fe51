"""Which keys and certificates does a server have, and how are a node's signed?

Runs as a child process (`python -m p2p_simulations.k3s.pki`, a JSON request per line on stdin, a JSON answer
per line on stdout): a k3s that lives for weeks need not hold the 10 MB of the cryptography library for the
second in which it makes certificates. Keys are EC P-256 as k3s's; existing files (a seeded CA) are kept.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

CAS = {
    "client-ca": "k3s-client",
    "server-ca": "k3s-server",
    "request-header-ca": "k3s-request-header",
    "etcd/server-ca": "etcd-server",
    "etcd/peer-ca": "etcd-peer",
}
"""File below `server/tls`, and the prefix of the common name of a generated CA."""

LEAVES: tuple[tuple[str, str, str, str, str], ...] = (
    ("client-admin", "client-ca", "system:admin", "system:masters", "client"),
    ("client-supervisor", "client-ca", "system:k3s-supervisor", "system:masters", "client"),
    ("client-controller", "client-ca", "system:kube-controller-manager", "", "client"),
    ("client-scheduler", "client-ca", "system:kube-scheduler", "", "client"),
    ("client-kube-apiserver", "client-ca", "system:apiserver", "system:masters", "client"),
    ("serving-kube-apiserver", "server-ca", "kube-apiserver", "", "server"),
    ("client-auth-proxy", "request-header-ca", "system:auth-proxy", "", "client"),
    ("etcd/client", "etcd/server-ca", "etcd-client", "", "client"),
    ("etcd/server-client", "etcd/server-ca", "etcd-server", "", "server client"),
    ("etcd/peer-server-client", "etcd/peer-ca", "etcd-peer", "", "server client"),
)
"""File, issuing CA, common name, organization, usages."""


IDLE_S = 5.0
_children: list[subprocess.Popen[bytes]] = []
"""The child that lives, if one does."""
_lock = threading.Lock()


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Have a child process do `request`; it ends when it was not needed for a while. Blocks.

    Raises:
        RuntimeError: with the child's complaint.
    """
    line = json.dumps(request).encode() + b"\n"
    with _lock:
        raw = _exchange(line) or _exchange(line)  # an idle child may end just when it is asked
    if not raw:
        raise RuntimeError("the process that makes certificates died")
    answer: dict[str, Any] = json.loads(raw)
    if "error" in answer:
        raise RuntimeError(str(answer["error"]))
    return answer


def _exchange(line: bytes) -> bytes:
    """The child's answer, or b"" if it ended."""
    if not _children or _children[0].poll() is not None:
        command = [sys.executable, "-m", "p2p_simulations.k3s.pki"]
        new = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        threading.Thread(target=new.wait, daemon=True).start()  # leaves no zombie when it ends
        _children[:] = [new]
    child = _children[0]
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(line)
        child.stdin.flush()
        return child.stdout.readline()
    except BrokenPipeError:
        return b""


# ---- below here, in the child


def _key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), f"{path} is not an EC key"
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    _write(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
        0o600,
    )
    return key


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(data)
    path.chmod(mode)


def _name(common_name: str, organization: str = "") -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _make_ca(base: Path, prefix: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    certificate_file, key_file = base.with_suffix(".crt"), base.with_suffix(".key")
    if certificate_file.exists() and key_file.exists():
        return
    key = _key(key_file)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    name = _name(f"{prefix}-ca@{int(now.timestamp())}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sans(names: list[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _sign(
    ca_base: Path, public_key: Any, common_name: str, organization: str, usages: str, names: list[str]
) -> bytes:
    """A chain: the certificate, then the CA's bundle (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    bundle = ca_base.with_suffix(".crt").read_bytes()
    ca = x509.load_pem_x509_certificates(bundle)[0]
    raw_key = ca_base.with_suffix(".key").read_bytes()
    ca_key: CertificateIssuerPrivateKeyTypes = serialization.load_pem_private_key(  # type: ignore[assignment]
        raw_key, None
    )
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    oids = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name, organization))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(min(now + datetime.timedelta(days=365), ca.not_valid_after_utc))
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([oids[u] for u in usages.split()]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(_sans(names)), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM) + bundle


def _current(path: Path, ca_base: Path, names: list[str]) -> bool:
    """Does `path` hold a certificate of this CA, valid for all these names?"""
    from cryptography import x509

    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    ca = x509.load_pem_x509_certificates(ca_base.with_suffix(".crt").read_bytes())[0]
    if certificate.issuer != ca.subject:
        return False
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=120)
    if certificate.not_valid_after_utc < min(soon, ca.not_valid_after_utc):
        return False
    try:
        certificate.verify_directly_issued_by(ca)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(_sans(names)) <= set(extension.value)
    except x509.ExtensionNotFound:
        return not names
    except Exception:  # a signature of another key raises InvalidSignature, a foreign one ValueError
        return False


def _server(request: dict[str, Any]) -> dict[str, Any]:
    """Fill `tls`: CAs that are missing, then every certificate of a server."""
    tls, names = Path(request["tls"]), list(request["names"])
    for base, prefix in CAS.items():
        _make_ca(tls / base, prefix)
    for base, ca, common_name, organization, usages in LEAVES:
        wanted = names if "server" in usages else []
        certificate_file = (tls / base).with_suffix(".crt")
        if not _current(certificate_file, tls / ca, wanted):
            key = _key((tls / base).with_suffix(".key"))
            chain = _sign(tls / ca, key.public_key(), common_name, organization, usages, wanted)
            _write(certificate_file, chain, 0o644)
    for ca in ("client-ca", "server-ca"):
        bundle = (tls / ca).with_suffix(".crt").read_bytes()
        first = bundle.partition(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"
        _write(tls / f"{ca}.nochain.crt", first, 0o644)
    _key(tls / "service.key")  # k3s makes an RSA key; nothing here signs with it
    _write(tls / "service.current.key", (tls / "service.key").read_bytes(), 0o600)
    return {}


def _requests(request: dict[str, Any]) -> dict[str, Any]:
    """Certificate signing requests (DER, base64) for keys that are made if missing."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    answer = {}
    for path in request["keys"]:
        key = _key(Path(path))
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        answer[path] = base64.b64encode(csr.public_bytes(serialization.Encoding.DER)).decode()
    return answer


def _issue(request: dict[str, Any]) -> dict[str, Any]:
    """Sign a node's request."""
    from cryptography import x509

    csr = x509.load_der_x509_csr(base64.b64decode(request["csr"]))
    if not csr.is_signature_valid:
        raise ValueError("the certificate request is not signed by its own key")
    chain = _sign(
        Path(request["ca"]),
        csr.public_key(),
        request["common_name"],
        request["organization"],
        request["usages"],
        request["names"],
    )
    return {"chain": chain.decode()}


def main() -> None:
    operations = {"server": _server, "requests": _requests, "issue": _issue}
    while select.select([sys.stdin.buffer], [], [], IDLE_S)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        try:
            request = json.loads(line)
            answer = operations[request["op"]](request)
        except Exception as exc:  # told to whoever asked; an untrusted request may fail in many ways
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
