"""What does a simulated etcd hold, what has each of its members of it, and what is in a snapshot?

One `Etcd` per datastore: what a majority of its members has agreed on. A member that was not in touch when
something was written has only what it had before (`Etcd.writes`), until it hears the others again. A snapshot
(`Image`) is what one member has at one moment; a datastore can be begun from it with one member
(``--cluster-reset-restore-path``): everything written later is not in it, and neither are the other members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from p2p_simulations.sim.kube import Objects


@dataclass(frozen=True, slots=True)
class Image:
    """What one member holds. `log`: the numbers of what people wrote; `created_s`: Unix time."""

    name: str
    created_s: float
    ca_hash: str
    uid: str
    log: tuple[int, ...]
    workloads: int
    kube: Objects

    @property
    def revision(self) -> int:
        """How new it is."""
        return len(self.log) + self.kube.revision

    @property
    def digest(self) -> str:
        """Of the file."""
        told = (
            self.name,
            self.created_s,
            self.ca_hash,
            self.uid,
            self.log,
            self.workloads,
            self.kube.revision,
        )
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """About what such a file would take."""
        return 4096 + 64 * self.revision


@dataclass(slots=True)
class Etcd:
    """One datastore: what its members have agreed on.

    Attributes:
        members: voters: peer -> the address it is known by.
        learner: who is joining; one at a time.
        workloads: objects of users.
        reset: the epoch in which it was begun from one member or a snapshot; 0: by `cluster-init`.
        kube: the objects that it holds.
        log: what people wrote, in this order, each time a majority had it.
        has_served: it was ready once.
    """

    ca_hash: str
    uid: str
    members: dict[str, str] = field(default_factory=dict)
    learner: str = ""
    workloads: int = 0
    reset: int = 0
    kube: Objects = field(default_factory=Objects)
    log: list[int] = field(default_factory=list)
    has_served: bool = False
    _behind: dict[str, Image] = field(default_factory=dict)

    @classmethod
    def of(cls, image: Image, members: dict[str, str], reset: int) -> Etcd:
        """A datastore begun from what one member had."""
        kube = image.kube.copy()
        return cls(image.ca_hash, image.uid, members, "", image.workloads, reset, kube, log=list(image.log))

    @property
    def store(self) -> str:
        """Its name in the world; see `Data.store`."""
        return store_of(self.ca_hash, self.reset)

    def image(self, peer: str, name: str = "", created_s: float = 0.0) -> Image:
        """What this member holds."""
        held = self._behind.get(peer)
        log = held.log if held is not None else tuple(self.log)
        workloads = held.workloads if held is not None else self.workloads
        kube = (held.kube if held is not None else self.kube).copy()
        return Image(name, created_s, self.ca_hash, self.uid, log, workloads, kube)

    def writes(self, in_touch: Callable[[str], bool]) -> None:
        """Something is about to be written. `in_touch`: whether who writes hears that member."""
        for peer in self.members:
            if in_touch(peer):
                self._behind.pop(peer, None)
            elif peer not in self._behind:
                self._behind[peer] = self.image(peer)

    def caught_up(self, peer: str) -> None:
        """A member hears a majority again: it has everything."""
        self._behind.pop(peer, None)
        self.has_served = True


def store_of(ca_hash: str, reset: int) -> str:
    """What a datastore is called: a reset one is another."""
    return f"{ca_hash}/{reset}" if reset else ca_hash
