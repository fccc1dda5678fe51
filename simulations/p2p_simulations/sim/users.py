"""What did people write into their clusters, and is it still there?

In worlds with snapshots somebody writes something about once a second, through any API that answers. What was
answered was promised: it must be in the datastore for ever, unless that datastore was given up for what one
member or a snapshot of it held, on an operator's word. Then what was promised up to there must be there, in
its order and nothing else, and nobody may take a write for what was given up once its successor serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2p_roles.transitions import State
from p2p_simulations.sim.etcd import Etcd, Image
from p2p_simulations.sim.violation import Violation

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World

WRITES_EVERY_S: Final = 1.0


class Users:
    """The people of a world, and what they were promised."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.written = 0
        self._promised: dict[str, list[int]] = {}  # datastore -> what was answered, in order
        self._in_file: dict[str, tuple[int, ...]] = {}  # digest -> what had been promised when it was saved
        self.given_up: dict[str, int] = {}  # datastore -> how much of what was promised it began without

    def begin(self) -> None:
        """Write, from now on."""
        self._world.engine.after(WRITES_EVERY_S, self._write)

    def _write(self) -> None:
        self._world.engine.after(WRITES_EVERY_S, self._write)
        out = self._world.revoked  # may go on alone where nobody can tell it; people know better
        machines = [
            m for m in self._world.machines.values() if m.k3s.serving() is not None and m.peer not in out
        ]
        if not machines:
            return
        machine = self._world.engine.random.choice(machines)
        etcd = machine.k3s.serving()
        assert etcd is not None, "it was asked"
        ready = self._world.checkers.votes.ready(machine.scope)
        if ready is None or ready[1].ca_hash != etcd.ca_hash:
            return  # it may be given up yet, or is somebody else's
        self.written += 1
        etcd.writes(lambda peer: machine.k3s.in_touch(etcd, peer))
        etcd.log.append(self.written)
        self.answered(machine, etcd)

    # ------------------------------------------------------------ what must hold

    def answered(self, machine: SimMachine, etcd: Etcd) -> None:
        """A write was taken: it is promised, and nobody else may be in charge of the cluster by now."""
        for other in self._world.etcds.values():
            if other.ca_hash == etcd.ca_hash and other.reset > etcd.reset and other.has_served:
                raise Violation(
                    f"{machine.name} takes a write for {etcd.store}, but {other.store} has replaced it"
                )
        self._promised.setdefault(etcd.store, []).append(etcd.log[-1])

    def saved(self, machine: SimMachine, image: Image, etcd: Etcd) -> None:
        """A server that is ready saved a snapshot: everything that was promised is in it."""
        promised = tuple(self._promised.get(etcd.store, ()))
        if image.log != promised:
            raise Violation(f"{machine.name} saved {len(image.log)} writes, {len(promised)} were promised")
        self._in_file[image.digest] = promised

    def carried_on(self, machine: SimMachine, image: Image, store: str) -> None:
        """A datastore begins from what a member or (with a name) a snapshot of an older one held."""
        if image.name and image.log != self._in_file.get(image.digest):
            raise Violation(f"{machine.name} restores what is not in the snapshot {image.name}")
        before = [
            etcd
            for etcd in self._world.etcds.values()
            if etcd.ca_hash == image.ca_hash and etcd.store != store
        ]
        promised = [self._promised.get(etcd.store, []) for etcd in before]
        if before and not any(tuple(all_of[: len(image.log)]) == image.log for all_of in promised):
            raise Violation(f"{machine.name} carries a cluster on with what was never promised in this order")
        newest = max(before, key=lambda etcd: etcd.reset, default=None)
        lost = len(self._promised.get(newest.store, [])) - len(image.log) if newest is not None else 0
        source = f"the snapshot {image.name}" if image.name else "its own data"
        self._world.note(
            machine.name, f"begins {store} from {source}: {len(image.log)} writes, {max(0, lost)} are lost"
        )
        self.given_up[store] = max(0, lost)
        self._promised[store] = list(image.log)

    def settled(self) -> None:
        """In the end all that was promised is there, and all servers of a cluster are in one datastore."""
        for etcd in self._world.etcds.values():
            if etcd.log != self._promised.get(etcd.store, []):
                raise Violation(f"{etcd.store} does not hold what was promised")
        stores: dict[str, set[str]] = {}
        for machine in self._world.machines.values():
            served = machine.k3s.serving()
            is_other = machine.plan.stale_k3s or machine.peer in self._world.revoked
            state = machine.agent.bootstrap.state if machine.agent is not None else None
            # an epoch that is open, or just found to be over (a world without liveness ends at any moment)
            is_none = state in (State.INIT, State.FENCED)
            if served is not None and not is_other and not is_none:
                stores.setdefault(machine.scope, set()).add(served.store)
        for scope, found in stores.items():
            if len(found) > 1:
                raise Violation(f"the servers of {scope} are in different datastores: {sorted(found)}")
