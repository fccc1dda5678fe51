"""Is what a node sends and remembers bounded by the size of the mesh?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2p_simulations.sim.violation import fail
from p2p_simulations.sim.weight import bytes_held

if TYPE_CHECKING:
    from p2p_simulations.sim.world import World

MAX_MESSAGES_PER_S = 150.0  # per node, over `WINDOW_S`
MAX_BYTES_PER_S = 60_000.0  # likewise
WINDOW_S = 20.0
MAX_HELD_BYTES = (112 << 10, 16 << 10)
"""What an agent's columns may hold in memory: so much, and so much more for each identity of the mesh.
The certificates of eight epochs are in the first number (4 KB each, in all forms), however small the mesh."""
SNAPSHOTS_HELD_BYTES = 16 << 10
"""And for each identity in worlds with snapshots: who holds which."""


class Bounds:
    """What the nodes of one world may send and remember at most."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._messages: dict[str, tuple[int, int]] = {}
        self._window_began = 0.0
        self.most_messages_per_s = self.most_bytes_per_s = 0.0
        self.most_held_bytes = 0

    def message(self, name: str, size_bytes: int) -> None:
        """A node sends a message: the rate is bounded, by number and by bytes."""
        now = self._world.engine.now
        if now - self._window_began >= WINDOW_S:
            self._window_began = now
            self._messages.clear()
        count, size = self._messages.get(name, (0, 0))
        count, size = self._messages[name] = count + 1, size + size_bytes
        self.most_messages_per_s = max(self.most_messages_per_s, count / WINDOW_S)
        if count > MAX_MESSAGES_PER_S * WINDOW_S:
            fail(f"{name} sent {count} messages in {WINDOW_S:.0f} s")
        self.most_bytes_per_s = max(self.most_bytes_per_s, size / WINDOW_S)
        if size > MAX_BYTES_PER_S * WINDOW_S:
            fail(f"{name} sent {size} bytes in {WINDOW_S:.0f} s")

    def memory(self) -> None:
        """What a node remembers is bounded by the size of the mesh, whatever the others said to it."""
        first, each = MAX_HELD_BYTES
        if self._world.plan.k3s.snapshots_s:  # what the others hold
            each += SNAPSHOTS_HELD_BYTES
        limit = first + each * self._world.identities
        for machine in self._world.machines.values():
            if machine.agent is None:
                continue
            held = bytes_held(machine.agent)
            self.most_held_bytes = max(self.most_held_bytes, held)
            if held > limit:
                fail(f"{machine.name} holds {held} bytes in memory, more than {limit}")
