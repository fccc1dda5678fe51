"""Who tells the boot slots that this node is healthy? The agent, by the rule in `health`.

On a machine that our initramfs booted: looks at the node now and then, and blesses the slot it runs from once
the rule says so. On any other machine there is nothing to bless, and this ends at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from p2p_bootstrap.api.service import StatusDoc
from p2p_bootstrap.boot import blessing
from p2p_bootstrap.config.model import Bless
from p2p_bootstrap.node import health
from p2p_network.core import log
from p2p_network.core.errors import P2PError

logger = log.get(__name__)

LOOK_EVERY_S: Final = 2.0


async def _bless() -> tuple[str, ...]:
    return await trio.to_thread.run_sync(blessing.bless)


async def _slot() -> str:
    return await trio.to_thread.run_sync(blessing.running_slot)


class Blessing:
    """The column between a node's health and its boot slots.

    Args:
        options: what counts as healthy.
        status: this node, now.
        bless: says it, durably; returns what that means, nothing if there is nothing to bless.
        slot: that this machine was booted from, "" if our initramfs did not boot it.
    """

    def __init__(
        self,
        options: Bless,
        status: Callable[[], StatusDoc],
        *,
        bless: Callable[[], Awaitable[tuple[str, ...]]] = _bless,
        slot: Callable[[], Awaitable[str]] = _slot,
    ) -> None:
        self._health = health.Health(options.when, float(options.hold_s))
        self._status = status
        self._bless = bless
        self._slot = slot

    @property
    def reason(self) -> str:
        """Why the slot is blessed, or not yet."""
        return self._health.reason

    async def run(self) -> None:
        """Look until the slot is blessed; until cancelled."""
        if not await self._slot():
            return
        while not self._health.done:
            await self._step(health.Seen(condition_of(self._status())))
            await trio.sleep(LOOK_EVERY_S)

    async def _step(self, event: health.Event) -> None:
        decision = self._health.step(trio.current_time(), event)
        if decision.reason:
            log.event(logger, "boot.health_changed", reason=decision.reason)
        for effect in decision.effects:
            assert isinstance(effect, health.Bless)
            try:
                said = await self._bless()
            except (P2PError, OSError) as exc:
                message = exc.message if isinstance(exc, P2PError) else str(exc)
                hint = exc.hint if isinstance(exc, P2PError) else "is the disk still there?"
                log.event(logger, "boot.bless_failed", logging.ERROR, error=message, hint=hint)
                await self._step(health.BlessFailed(message))
                return
            log.event(logger, "boot.slot_blessed", reason="; ".join(said) or "there was nothing to bless")
            await self._step(health.Blessed())


def condition_of(status: StatusDoc) -> health.Condition:
    """What of a node's status its health depends on."""
    mesh, role = status["mesh"], status["role"]
    return health.Condition(mesh["peers"], mesh["known"], role["role"], role["ready"])
