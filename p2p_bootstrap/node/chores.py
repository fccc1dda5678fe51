"""What does the bootstrap machine want done with k3s that takes its time?

Each chore is an effect of the machine's, carried out beside everything else; how it ended comes back to the
machine as an event. What failed is said in the log, and the machine asks again. What changes k3s's data is
done one after another, and only if it still is to be done when its turn has come: nothing is set aside under
a reset, and nothing of what a node has begun since.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from p2p_bootstrap.node.runtime import Runtime
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_roles import events
from p2p_roles.genesis.messages import Genesis

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import K3s

logger = log.get(__name__)


async def _no_objection(genesis: Genesis) -> str:
    return ""


async def _no_snapshots(digest: str) -> str:
    raise RoleError(f"there are no snapshots here, so none with the digest {digest[:12]}")


class Chores:
    """k3s's chores on one node.

    Attributes:
        find_snapshot: where the etcd snapshot of that digest lies here; raises P2PError.
        before_reset: what speaks against beginning etcd anew for that recovery; "" if nothing.
    """

    def __init__(self, runtime: Runtime, k3s: K3s, feed: Callable[[events.Event], Awaitable[None]]) -> None:
        self._runtime = runtime
        self._k3s = k3s
        self._feed = feed
        self._alone = runtime.lock()
        self.find_snapshot: Callable[[str], Awaitable[str]] = _no_snapshots
        self.before_reset: Callable[[Genesis], Awaitable[str]] = _no_objection

    async def make_secrets(self, epoch: int) -> None:
        """Make the CA and token of an epoch that this node may initialise."""
        async with self._alone:  # made once, however long that takes on a slow machine
            ca_hash = await self._runtime.in_thread(self._k3s.make_secrets, epoch)
        await self._feed(events.SecretsMade(epoch, ca_hash))

    async def wipe(self, effect: events.WipeK3s, is_due: Callable[[], bool]) -> None:
        """Set aside what k3s has of an epoch that is over, if that still is to be done."""
        async with self._alone:
            if not is_due():
                return
            try:
                await self._k3s.set_aside(
                    f"epoch-{effect.epoch}", only_datastore=effect.only_datastore, keep=effect.keep
                )
            except P2PError as exc:
                self._not_set_aside(exc)
            else:
                await self._feed(events.K3sWiped(effect.epoch))

    def _not_set_aside(self, why: P2PError) -> None:
        """The machine asks again."""
        self._runtime.log(logger, "roles.not_set_aside", logging.ERROR, error=why.message, hint=why.hint)

    async def reset(
        self, effect: events.ResetK3s, decided: Genesis | None, opened: Callable[[], Genesis | None]
    ) -> None:
        """Begin etcd anew with this server alone. `decided`: the recovery; `opened`: the one of now."""
        async with self._alone:
            error = await self._reset(effect, decided, opened)
            if error:
                self._runtime.log(logger, "roles.k3s_not_reset", logging.ERROR, error=error)
            await self._feed(events.K3sReset(effect.epoch, error))

    async def _reset(
        self, effect: events.ResetK3s, decided: Genesis | None, opened: Callable[[], Genesis | None]
    ) -> str:
        """The same, alone; why it could not, "" if it is done."""
        snapshot = ""
        error = await self.before_reset(decided) if decided is not None else ""
        if effect.snapshot and not error:
            try:
                snapshot = await self.find_snapshot(effect.snapshot)
            except P2PError as exc:
                error = exc.message
        if not error and opened() != decided:  # what there is may be set aside already
            error = "it was given up meanwhile"
        if not error:
            self._runtime.log(logger, "roles.k3s_resetting", epoch=effect.epoch, snapshot=effect.snapshot)
            error = await self._k3s.reset(effect, snapshot)
        return error

    async def count_workloads(self) -> None:
        """Look what users have in the cluster served here."""
        await self._feed(events.WorkloadsCounted(await self._k3s.count_workloads()))

    async def set_aside(self, effect: events.SetAsideK3s, is_due: Callable[[], bool]) -> None:
        """Set aside what k3s has in a role that this node is to leave, if that still is to be done."""
        async with self._alone:
            if not is_due():
                return
            try:
                if may_vote := effect.unless_voting:
                    await self._k3s.stop()
                    may_vote = await self._k3s.may_vote()
                if not may_vote:
                    await self._k3s.set_aside(f"{effect.was}-of-epoch-{effect.epoch}")
            except P2PError as exc:
                self._not_set_aside(exc)
            else:
                await self._feed((events.K3sMayVote if may_vote else events.K3sWiped)(effect.epoch))
