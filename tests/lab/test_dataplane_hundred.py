"""How much memory does a data plane take with a hundred peers, and does each of them have its way?"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import trio
import two_planes
from plane_traffic import Transfer, ping
from two_planes import Field, Place, session_pair, until

from p2p_network.dataplane.messages import Stats

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")
PEERS = 100
LIMIT_MB = 60


def rss_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def as_number(place: Place, number: int) -> Place:
    """The same place, as it seems to be to the other's peer of this number: with addresses of its own."""
    return dataclasses.replace(place, index=number)


async def test_a_hundred_peers_fit_into_memory() -> None:
    """All of them live in one other process: sessions, connections and addresses of their own."""
    with Field(2) as lab:
        one, two = lab.places
        plane, other = [await place.configured() for place in lab.places]
        idle_mb = rss_mb(plane.pid)
        for number in range(2, 2 + PEERS):
            keys, other_keys = session_pair(one, as_number(two, number))
            dialling = as_number(one, PEERS + number) if number > 2 else one
            await other.put_peer(dialling.as_peer(other_keys, dial=False))
            await plane.put_peer(as_number(two, number).as_peer(keys, dial=True))

        def all_carry(stats: Stats) -> bool:
            return sum(p.carrier == "tcp" for p in stats.peers) == PEERS

        await until(plane, all_carry, seconds=120)
        await until(other, all_carry, seconds=120)
        for six in (False, True):
            await Transfer(one, two, mib=16, six=six).arrived_unchanged()
        assert " 0% packet loss" in await trio.to_thread.run_sync(ping, one, two.inner)
        sizes = [rss_mb(each.pid) for each in (plane, other)]
        print(f"idle {idle_mb:.1f} MB; {PEERS} peers: {sizes[0]:.1f} MB, at the other end {sizes[1]:.1f} MB")
        assert max(sizes) < LIMIT_MB
        for each in (plane, other):
            await each.aclose()
