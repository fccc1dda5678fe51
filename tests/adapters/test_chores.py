"""Is k3s's data changed by one chore at a time, and only if it still is to be done? MockClock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import trio
from trio.testing import MockClock

from p2p_bootstrap.node.chores import Chores
from p2p_bootstrap.node.ports import K3s
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_roles import events
from p2p_roles.genesis.certificate import Certificate

SLOWLY_S = 60.0


class SlowK3s:
    """Says what is done to it, and fails if two things are done at once."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self._busy = False

    async def _lasts(self, what: str) -> None:
        assert not self._busy, f"{what} under another chore"
        self._busy = True
        await trio.sleep(SLOWLY_S)
        self._busy = False
        self.did.append(what)

    async def set_aside(self, label: str, *, only_datastore: bool = False, keep: bool = False) -> None:
        await self._lasts(f"set aside {label}")

    async def reset(self, effect: events.ResetK3s, snapshot: str) -> str:
        await self._lasts(f"reset {effect.epoch}")
        return ""

    async def stop(self) -> None:
        await self._lasts("stop")

    async def may_vote(self) -> bool:
        return True


class Node:
    """The chores, and what came of them."""

    def __init__(self) -> None:
        self.k3s, self.fed = SlowK3s(), list[events.Event]()
        self.chores = Chores(TrioRuntime(), cast(K3s, self.k3s), self._feed)

    async def _feed(self, event: events.Event) -> None:
        self.fed.append(event)

    async def does(self, *jobs: Callable[[], object]) -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)  # type: ignore[arg-type]
                await trio.testing.wait_all_tasks_blocked()


def wipe(node: Node, is_due: Callable[[], bool]) -> Callable[[], object]:
    return partial(node.chores.wipe, events.WipeK3s(1, cast(Certificate, None)), is_due)


def reset(node: Node, epoch: int, **given_up: object) -> Callable[[], object]:
    effect = events.ResetK3s(epoch, "c" * 64, "", False)
    return partial(node.chores.reset, effect, None, lambda: given_up.get("by"))


async def test_what_was_set_aside_is_not_set_aside_again(autojump_clock: MockClock) -> None:
    node = Node()

    def is_due() -> bool:
        return not node.fed  # from then on there may be the data of another cluster

    await node.does(wipe(node, is_due), wipe(node, is_due))
    assert node.k3s.did == ["set aside epoch-1"]
    assert node.fed == [events.K3sWiped(1)]


async def test_a_role_that_was_left_is_left_once(autojump_clock: MockClock) -> None:
    node = Node()
    job = partial(
        node.chores.set_aside, events.SetAsideK3s(1, "server", unless_voting=True), lambda: not node.fed
    )
    await node.does(job, job)
    assert node.k3s.did == ["stop"]
    assert node.fed == [events.K3sMayVote(1)]


async def test_nothing_is_done_under_a_reset_and_an_older_one_is_dropped(autojump_clock: MockClock) -> None:
    node = Node()
    await node.does(
        reset(node, 2), wipe(node, lambda: True), reset(node, 3, by="another recovery"), reset(node, 4)
    )
    assert node.k3s.did == ["reset 2", "set aside epoch-1", "reset 4"]
    assert node.fed == [
        events.K3sReset(2, ""),
        events.K3sWiped(1),
        events.K3sReset(3, "it was given up meanwhile"),
        events.K3sReset(4, ""),
    ]
