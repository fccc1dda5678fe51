"""How does a configuration get onto the disk, so that it is whole and secret at every moment?

A new file with mode 0600 beside the target, fsync, rename, fsync of the folder: after a power cut there is
the old file or the new one. `from_token` renders the smallest cloud-config that a token needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import Value
from p2p_bootstrap.cloudconfig.render import render
from p2p_network.admission.join_token import is_join_token
from p2p_network.core.errors import NotPermitted, P2PError

MODE: Final = 0o600


def write_config(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically, readable by its owner only. Makes missing folders.

    Raises:
        NotPermitted: this user may not write there.
        P2PError: the disk is full, read-only or broken; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), MODE)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise _refusal(path, exc) from exc


def from_token(
    token_text: str,
    region: str | None = None,
    *,
    zone: str | None = None,
    network_id: str | None = None,
    role: str | None = None,
    servers: int | None = None,
    minimum_nodes: int | None = None,
    bootstrap: Sequence[str] = (),
    hostname: str | None = None,
) -> str:
    """The text of a minimal cloud-config; what is None stays unset.

    Nothing is checked here: give the text to ``loading.load([], stdin=text)``, which names every problem.
    """
    line = "".join(token_text.split())
    p2p: Mapping[str, Value] = {
        "join_token" if is_join_token(line) else "network_token": line,
        "network_id": network_id,
        "region": region,
        "zone": zone,
        "role": role,
        "servers": servers,
        "minimum_nodes": minimum_nodes,
        "bootstrap": list(bootstrap) or None,
    }
    document: dict[str, Value] = {"p2p": {key: value for key, value in p2p.items() if value is not None}}
    if hostname is not None:
        document = {"hostname": hostname, **document}
    return render(
        document,
        comment="Written by kairos-p2p. Holds the secret of the mesh: keep it readable by root only.",
    )


def _refusal(path: Path, exc: OSError) -> P2PError:
    match exc.errno:
        case errno.EACCES | errno.EPERM:
            return NotPermitted(f"{path}: may not be written by this user", hint="run as root")
        case errno.ENOSPC | errno.EDQUOT:
            return P2PError(
                f"{path}: no space is left on the disk", hint="free some; the old file is untouched"
            )
        case errno.EROFS:
            return P2PError(
                f"{path}: the file system is read-only",
                hint="on an immutable system write to a persistent folder, such as /oem",
            )
        case _:
            return P2PError(
                f"{path}: can't be written: {exc.strerror or exc}", hint="check the path and the disk"
            )
