"""Which peers came, and which are gone? What the mesh host tells its owner; without any import of libp2p."""

from __future__ import annotations

from dataclasses import dataclass

from p2p_network.core.ids import PeerId


@dataclass(frozen=True, slots=True)
class PeerUp:
    """Requests to `peer` can be made. `address`: the other end; `inbound`: it dialled us."""

    peer: PeerId
    address: str
    inbound: bool


@dataclass(frozen=True, slots=True)
class PeerDown:
    """Requests to `peer` can't be made any more. `reason`: why."""

    peer: PeerId
    reason: str
