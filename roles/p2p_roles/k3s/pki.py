"""Which CA and tokens has a cluster, before its k3s has ever started?

k3s takes CA files that lie in ``server/tls`` at its first start as its own. So the initiator makes them
for its epoch, and the join token (``K10<hash>::server:<password>``), which pins the CA, is known before
anything runs: it is the epoch's fence. Each CA is a bundle of an intermediate and a root made for this
one cluster, since single certificates can't be rotated later; the hash is that of the root's DER.

An adapter in one respect: keys are drawn from the operating system by `cryptography`. Time is passed in.
Nothing here derives from the mesh token.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
import secrets

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2p_network import wire
from p2p_roles.assign import Role
from p2p_roles.rules import Authorization

CA_NAMES = (
    ("client-ca", "k3s-client-ca"),
    ("server-ca", "k3s-server-ca"),
    ("request-header-ca", "k3s-request-header-ca"),
    ("etcd/server-ca", "etcd-server-ca"),
    ("etcd/peer-ca", "etcd-peer-ca"),
)
"""File below ``server/tls`` without suffix, and the common name k3s itself would use."""

_YEARS = datetime.timedelta(days=3650)
_BACKDATED = datetime.timedelta(days=1)  # a joining node's clock may be behind
_MAX_SECRET_BYTES = 64 * 1024
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----")
_K10 = re.compile(r"K10([0-9a-f]{64})::(server|node):[^\s:]{8,256}")


class ClusterSecrets(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """What the initiator makes for one epoch. Secret as a whole; `repr` shows only the hash.

    Attributes:
        epoch: of the genesis it was made for.
        ca_hash: hex SHA-256, as in the tokens.
        files: name below ``server/tls`` and PEM content.
        server_token, agent_token: in K10 form.
        root_key: PEM key of the root; needed only for rotating the CAs.
    """

    epoch: int
    ca_hash: str
    files: tuple[tuple[str, bytes], ...]
    server_token: str
    agent_token: str
    root_key: bytes

    def __repr__(self) -> str:
        return f"ClusterSecrets(epoch={self.epoch}, ca_hash={self.ca_hash})"

    def joining(self, granted: Role) -> JoinSecret:
        """The part that a node of that role gets."""
        return JoinSecret(granted, self.server_token if granted == "server" else "", self.agent_token)


class JoinSecret(msgspec.Struct, frozen=True):
    """What a node is handed to join with: agents get only the agent's token."""

    role: Role
    server_token: str
    agent_token: str

    def __repr__(self) -> str:
        return f"JoinSecret(role={self.role}, ca_hash={self.ca_hash})"

    @property
    def ca_hash(self) -> str:
        """The CA hash that the tokens pin."""
        return token_ca_hash(self.agent_token)

    def joining(self, granted: Role) -> JoinSecret:
        """The part of it that a server hands on. An agent holds nothing to hand on."""
        assert self.role == "server", "only servers hand secrets out"
        return JoinSecret(granted, self.server_token if granted == "server" else "", self.agent_token)


def make(epoch: int, now: datetime.datetime) -> ClusterSecrets:
    """Fresh CAs and tokens. `now`: aware, UTC. Takes a few milliseconds (EC P-256)."""
    root_key = _new_key()
    stamp = int(now.timestamp())
    root = _certificate(f"kairos-p2p-root-ca@{stamp}", root_key, None, now)
    root_pem = root.public_bytes(serialization.Encoding.PEM)
    files: list[tuple[str, bytes]] = []
    for name, common_name in CA_NAMES:
        key = _new_key()
        ca = _certificate(f"{common_name}@{stamp}", key, (root, root_key), now)
        files.append((f"{name}.crt", ca.public_bytes(serialization.Encoding.PEM) + root_pem))
        files.append((f"{name}.key", _key_pem(key)))
    files.append(("service.key", _key_pem(_new_key())))
    ca_hash = hashlib.sha256(root.public_bytes(serialization.Encoding.DER)).hexdigest()
    return ClusterSecrets(
        epoch,
        ca_hash,
        tuple(files),
        f"K10{ca_hash}::server:{secrets.token_hex(16)}",
        f"K10{ca_hash}::node:{secrets.token_hex(16)}",
        _key_pem(root_key),
    )


def encode(secret: ClusterSecrets | JoinSecret) -> bytes:
    """Its bytes, for the disk (root only) or an encrypted request."""
    return wire.encode(secret)


def decode_cluster(raw: bytes) -> ClusterSecrets:
    """Secrets from this node's own disk. Raises ValueError."""
    return wire.decode(raw, ClusterSecrets)


def decode_join(raw: bytes) -> JoinSecret:
    """A join secret from a peer. Raises ValueError unless its tokens are whole and pin one CA."""
    if len(raw) > _MAX_SECRET_BYTES:
        raise ValueError("a join secret is smaller than this")
    secret = wire.decode(raw, JoinSecret)
    hashes_found = {token_ca_hash(t) for t in (secret.server_token, secret.agent_token) if t}
    if len(hashes_found) != 1 or not secret.agent_token:
        raise ValueError("the tokens of a join secret pin one and the same CA")
    if (secret.role == "server") != bool(secret.server_token):
        raise ValueError("servers, and only they, get the server's token")
    return secret


def token_ca_hash(token: str) -> str:
    """The CA hash in a K10 token. Raises ValueError (that does not quote it) if it is not one."""
    matched = _K10.fullmatch(token)
    if matched is None:
        raise ValueError("not a k3s token in K10 form")
    return matched[1]


def bundle_hash(pem: bytes) -> str:
    """The hash of what ``/cacerts`` serves, as k3s computes it: of one certificate the SHA-256 of the
    file, of a bundle that of its root's DER. Raises ValueError."""
    blocks = _PEM.findall(pem)
    if len(blocks) == 1:  # not parsed: k3s gives a CA of its own the serial 0, which X.509 has no place for
        base64.b64decode(b"".join(blocks[0].split()), validate=True)
        return hashlib.sha256(pem).hexdigest()
    found = x509.load_pem_x509_certificates(pem)
    roots = [c for c in found if c.subject == c.issuer]
    if len(roots) != 1:
        raise ValueError(f"a CA bundle has one root, this has {len(roots)}")
    return hashlib.sha256(roots[0].public_bytes(serialization.Encoding.DER)).hexdigest()


class JoinAnswer(msgspec.Struct, frozen=True):
    """What a server answers to a node that asks for a join secret."""

    secret: JoinSecret | None
    reason: str


def hand_out(authorization: Authorization, held: ClusterSecrets | JoinSecret | None) -> JoinAnswer:
    """The answer to a peer, from an authorization and what this server holds."""
    if authorization.granted is None:
        return JoinAnswer(None, authorization.reason)
    if held is None or (isinstance(held, JoinSecret) and held.role != "server"):
        return JoinAnswer(None, "this node holds no secret to hand out")
    return JoinAnswer(held.joining(authorization.granted), authorization.reason)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,  # "EC PRIVATE KEY", as k3s writes it
        serialization.NoEncryption(),
    )


def _certificate(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    now: datetime.datetime,
) -> x509.Certificate:
    """A CA certificate: self-signed, or by `issuer`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    parent, parent_key = issuer if issuer is not None else (None, key)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.subject if parent is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False
        )
        .sign(parent_key, hashes.SHA256())
    )
