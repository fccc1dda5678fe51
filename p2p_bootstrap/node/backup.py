"""What is in a backup, and how does it become a cluster again?

One sealed file (passphrase): first what the cluster is (`Backup`: its genesis, CA with keys, tokens, nodes),
then an etcd snapshot. Whoever restores it gets the same CA, so kubeconfigs and tokens stay valid. An adapter
for a thread: files only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from p2p_bootstrap.node.vault import hash_blocks, read_blocks, write_whole
from p2p_network import wire
from p2p_network.blobs import sealing
from p2p_network.blobs.sealing import Header
from p2p_network.core.errors import RoleError, UsageError
from p2p_roles.genesis.messages import Genesis
from p2p_roles.k3s import pki
from p2p_roles.recovery import SnapshotFacts

KIND: Final = "cluster-backup"
MAX_ABOUT_BYTES: Final = 1 << 20
MIN_PASSPHRASE_BYTES: Final = 8
MAX_PASSPHRASE_BYTES: Final = 4096


class Backup(msgspec.Struct, frozen=True):
    """What a cluster is, besides its data. Secret as a whole.

    Attributes:
        version: of this struct.
        created_s: Unix time.
        genesis: of the cluster.
        servers: how many it was declared to have.
        nodes: Kubernetes names of its nodes.
        snapshot: what follows in the file.
        secrets: CA and tokens.
    """

    version: int
    created_s: float
    genesis: Genesis
    servers: int
    nodes: tuple[str, ...]
    snapshot: SnapshotFacts
    secrets: pki.ClusterSecrets

    def __repr__(self) -> str:
        return f"Backup(cluster_id={self.genesis.cluster_id}, snapshot={self.snapshot.name})"


def read_passphrase(path: Path) -> bytes:
    """The passphrase in a file, without its last newline. Raises UsageError."""
    try:
        raw = path.read_bytes()[: MAX_PASSPHRASE_BYTES + 2].rstrip(b"\r\n")
    except OSError as exc:
        raise UsageError(f"the passphrase in {path} cannot be read: {exc.strerror}") from exc
    if not MIN_PASSPHRASE_BYTES <= len(raw) <= MAX_PASSPHRASE_BYTES:
        raise UsageError(f"a passphrase has {MIN_PASSPHRASE_BYTES} to {MAX_PASSPHRASE_BYTES} bytes")
    return raw


def write(path: Path, backup: Backup, snapshot: Path, passphrase: bytes) -> int:
    """Write the file, whole or not at all; its size. Raises RoleError, UsageError."""
    about = wire.encode(backup)
    if len(about) > MAX_ABOUT_BYTES:
        raise RoleError("the description of this cluster is too large for a backup")
    size = 4 + len(about) + backup.snapshot.size_bytes
    said = {
        "cluster": backup.genesis.cluster_id,
        "snapshot": backup.snapshot.name,
        "created_s": f"{backup.created_s:.0f}",
    }
    header = sealing.with_passphrase(Header(KIND, said, size, os.urandom(sealing.SALT_BYTES)))
    hashed = hashlib.sha256()

    def content() -> Iterator[bytes]:
        yield len(about).to_bytes(4, "big") + about
        yield from read_blocks(snapshot, hashed)

    try:
        if path.exists():
            raise UsageError(f"{path} is there already", hint="backups are not overwritten")
        blocks = sealing.seal(header, sealing.key_of(header, passphrase), content())
        write_whole(path, blocks, lambda: hashed.hexdigest() == backup.snapshot.digest)
        return path.stat().st_size
    except ValueError as exc:
        raise RoleError(f"the backup could not be written: {exc}") from exc
    except OSError as exc:
        raise RoleError(f"{path} cannot be written: {exc.strerror}") from exc


def read(path: Path, passphrase: bytes, target: Path) -> Backup:
    """Check the whole file, write its snapshot to `target`. Raises RoleError, and leaves nothing then."""
    try:
        with path.open("rb") as file:
            header = sealing.read_header(file)
            if header.kind != KIND:
                raise RoleError(f"{path} is a sealed {header.kind}, not a backup of a cluster")
            if path.stat().st_size != sealing.sealed_size(header):
                raise RoleError(
                    f"{path} is torn: it has {path.stat().st_size} bytes of {sealing.sealed_size(header)}",
                    hint="copy it again from where it was made",
                )
            blocks = sealing.unseal(header, sealing.key_of(header, passphrase), file)
            backup, rest = _begin(blocks)
            hashed = hashlib.sha256()
            write_whole(
                target, hash_blocks(rest, hashed), lambda: hashed.hexdigest() == backup.snapshot.digest
            )
            return backup
    except sealing.Damaged as exc:
        raise RoleError(
            f"{path} cannot be restored: {exc}", hint="is it the right passphrase, and the whole file?"
        ) from exc
    except ValueError as exc:
        raise RoleError(f"{path} is damaged inside: {exc}") from exc
    except OSError as exc:
        raise RoleError(f"{path} cannot be read: {exc.strerror}") from exc


def _begin(blocks: Iterator[bytes]) -> tuple[Backup, Iterator[bytes]]:
    """The description, and what follows it."""
    start = next(blocks)
    size = int.from_bytes(start[:4], "big")
    if size > MAX_ABOUT_BYTES:
        raise ValueError("its description is too long")
    while len(start) < 4 + size:
        more = next(blocks, b"")
        if not more:
            raise ValueError("its description is cut short")
        start += more
    backup = wire.decode(start[4 : 4 + size], Backup)
    pki.token_ca_hash(backup.secrets.server_token)

    def rest() -> Iterator[bytes]:
        yield start[4 + size :]
        yield from blocks

    return backup, rest()
