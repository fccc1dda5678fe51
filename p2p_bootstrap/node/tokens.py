"""With which admission does an agent start: the network token's, a join token's, or what its disk has?"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from p2p_bootstrap.node.admission import durable_key
from p2p_network.admission.kept import (
    Kept,
    decode_kept,
    from_join_token,
    from_network_token,
    without_token,
)
from p2p_network.core import log
from p2p_network.core.errors import MeshError, TokenError
from p2p_network.core.ids import PeerId
from p2p_network.token import mesh_keys

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config
    from p2p_bootstrap.node.ports import Durable

logger = log.get(__name__)

CURRENT_KEY = "admission"
"""Holds the mesh id that the agent ran with last, for a start without any token."""


def begin(config: Config, durable: Durable, peer: PeerId) -> Kept:
    """What this node's admission rests on. Blocks (disk).

    Raises ConfigError if there is neither a token nor an earlier admission, TokenError for a join token that
    has expired, MeshError if what is on the disk is damaged.
    """
    now_ms = int(time.time() * 1000)
    kept = _begin(config, durable, peer, now_ms)
    if kept.network_id != config.p2p.network_id:
        raise MeshError(
            f"this node's mesh has network id {kept.network_id!r}, the cloud-config says "
            f"{config.p2p.network_id!r}",
            hint=f"write p2p.network_id: {kept.network_id}",
        )
    if durable.get(CURRENT_KEY) != kept.mesh_id.encode():
        durable.set(CURRENT_KEY, kept.mesh_id.encode())
    return kept


def _begin(config: Config, durable: Durable, peer: PeerId, now_ms: int) -> Kept:
    joining = config.join_token
    if joining is not None:
        kept = from_join_token(joining, _kept(durable, joining.mesh_id))
        if kept.invite and now_ms > joining.expires_s * 1000:
            raise TokenError(
                "the join token has expired, and this node was not admitted before",
                hint="ask for a new one: kairos-p2p token invite",
            )
        return kept
    if not config.has_token:
        current = durable.get(CURRENT_KEY)
        known = _kept(durable, current.decode()) if current else None
        if known is None:
            _ = config.token  # raises what a person should read
            raise AssertionError("without a token config.token raises")
        return without_token(known, peer, now_ms)
    token, network_id = config.token, config.p2p.network_id
    found = _kept(durable, mesh_keys(token, network_id).mesh_id)
    if found is not None and found.generation > token.generation:
        log.event(
            logger,
            "admission.token_outdated",
            logging.WARNING,
            reason=f"the keys were rotated to generation {found.generation}; the cloud-config still has the "
            f"token of generation {token.generation}",
            hint="put in the token that `kairos-p2p token rotate` printed: this node could not be made anew",
        )
    return from_network_token(token, network_id, found, peer, now_ms)


def _kept(durable: Durable, mesh_id: str) -> Kept | None:
    raw = durable.get(durable_key(mesh_id))
    if raw is None:
        return None
    try:
        return decode_kept(raw)
    except ValueError as exc:
        raise MeshError(
            f"what this node keeps of its admission to mesh {mesh_id} can't be read: {exc}",
            hint="restore the state directory, or remove it: the node then joins as a new one, with a token",
        ) from exc
