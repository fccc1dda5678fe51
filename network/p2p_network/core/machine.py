"""What shape has everything that decides?

A core takes a moment and an event and returns a `Decision`: effects to carry out, in order, and one
sentence saying what was decided and why. A core does no I/O, reads no clock and draws no random number;
the adapter that owns it executes the effects in the order given and feeds what it observed back as
events. The simulator owns the same cores with other adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

E_contra = TypeVar("E_contra", contravariant=True)
F_co = TypeVar("F_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Decision(Generic[F_co]):
    """What a core wants done.

    Attributes:
        effects: imperatives, to be executed in this order; an effect that persists must be durable
            (fsync) before the next one starts.
        reason: one sentence, "what and why"; "" when nothing changed.
    """

    effects: tuple[F_co, ...] = field(default=())
    reason: str = ""


class Machine(Protocol[E_contra, F_co]):
    """The shape of every core."""

    def step(self, now: float, event: E_contra) -> Decision[F_co]:
        """Decide on one event. `now` is monotonic seconds."""
        ...

    def wake_at(self) -> float | None:
        """When the core wants a tick (monotonic seconds) although nothing happened; None for never."""
        ...
