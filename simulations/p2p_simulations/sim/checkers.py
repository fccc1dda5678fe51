"""What must never be, whatever fails?

The checkers stand outside the nodes and see all of them. They are told of everything that matters (votes
answered, state made durable, certificates, k3s started, wiped, joined, addresses) and look at the nodes
after every event. They take nothing from a core's word that they can count for themselves. What they
demand is in `invariants/`, by what it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_simulations.sim.invariants.bounds import Bounds
from p2p_simulations.sim.invariants.clusters import Clusters
from p2p_simulations.sim.invariants.ledgers import Ledgers
from p2p_simulations.sim.invariants.votes import Votes

if TYPE_CHECKING:
    from p2p_simulations.sim.world import World


class Checkers:
    """The invariants of one world."""

    def __init__(self, world: World) -> None:
        self.votes = Votes(world)
        self.clusters = Clusters(world, self.votes)
        self.ledgers = Ledgers(world, self.votes)
        self.bounds = Bounds(world)
