"""Do two nodes that know nothing of each other but a key find one another through a DHT of strangers?

The DHT is one of js-libp2p nodes, without a pre-shared key, with keys of all kinds and the validator that the
public DHT has; ours are real hosts. Nothing here leaves the loopback interface.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from p2p_network.core.ids import base58_decode
from p2p_network.host import finding, public_dht, public_notes
from p2p_network.host.discovery import Learn
from p2p_network.host.guards import ADMISSION_PROTOCOL
from p2p_network.host.mesh import MeshHost
from p2p_network.host.public_dht import public_client
from p2p_network.host.public_notes import SOURCE, PublicNotes, txt_records
from p2p_network.identity import Identity
from p2p_network.meeting import ipns, kad, notes
from p2p_network.meeting.pace import Outcome, Pauses
from p2p_network.meeting.witness import Witnesses

pytestmark = pytest.mark.xdist_group("npm")

NODES = 5
KEY = b"r" * 32
HURRIED = Pauses(first_s=0.0, alone_s=1.0, alone_cap_s=2.0, calm_s=3600.0, after_write_s=2.0)
OURS = ["/kairos-p2p/mesh/1", "/kairos-p2p/mesh/tube/1", ADMISSION_PROTOCOL, "/rendezvous/1.0.0"]
EVERYBODYS = ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", "/ipfs/kad/1.0.0"]


class Dht:
    """A DHT of js-libp2p nodes in one process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        told = self._line()
        self.entrances: list[str] = told["addresses"]
        assert min(told["known"]) == NODES - 1, "its nodes don't know each other"

    def ask(self, order: str) -> Any:
        """One line of JSON for one order."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null")


@contextmanager
def running_dht(folder: Path, *, hostile: int = 0) -> Iterator[Dht]:
    argv = ["node", str(folder / "dht.mjs"), str(NODES), *OURS, *EVERYBODYS]
    env = os.environ | {"HOSTILE": str(hostile)}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            yield Dht(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def dht(js_folder: Path) -> Iterator[Dht]:
    with running_dht(js_folder) as made:
        yield made


def host(number: int, dht: Dht, monkeypatch: pytest.MonkeyPatch) -> MeshHost:
    monkeypatch.setattr(finding, "PUBLIC_PAUSES", HURRIED)
    return MeshHost(
        identity=Identity(bytes([number]) * 32),
        psk=b"p" * 32,
        mesh_id="mesh",
        rendezvous=KEY,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=False,
        public_dht=dht.entrances[:2],
    )


def notes_of(number: int, dht: Dht, key: bytes, learn: Learn) -> PublicNotes:
    async def no_names(name: str) -> list[bytes]:
        raise OSError(f"{name}: this test asks no name server")

    return PublicNotes(
        Identity(bytes([number]) * 32).peer_id,
        key,
        dht.entrances,
        addresses=lambda: [f"/ip4/192.0.2.{number}/tcp/4701"],
        learn=learn,
        is_alone=lambda: True,
        names=no_names,
    )


async def test_two_hosts_find_each_other_and_then_mesh_with_the_key(
    dht: Dht, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = host(1, dht, monkeypatch), host(2, dht, monkeypatch)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.run)
            await nursery.start(two.run)
            while two.peer_id not in one.connected() or one.peer_id not in two.connected():
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    kept = await trio.to_thread.run_sync(dht.ask, "records")
    assert kept, "the DHT keeps what they wrote"
    values = [bytes.fromhex(record["value"]) for record in kept]
    secrets = [one.peer_id.encode(), two.peer_id.encode(), base58_decode(one.peer_id)[6:]]
    secrets += [base58_decode(two.peer_id)[6:], b"127.0.0.1", b"\x7f\0\0\1", b"kairos", b"mesh"]
    for value in values:
        assert not [secret for secret in secrets if secret in value or secret.hex().encode() in value]
    sizes = {len(value) for value in values}
    assert max(sizes) - min(sizes) <= 4, "a record's size says nothing: only its sequence number varies"

    guests = await trio.to_thread.run_sync(dht.ask, "guests")
    assert guests
    assert {protocol for guest in guests for protocol in guest["took"]} == set(), "it serves no protocol"
    assert any(set(guest["refused"]) == {*OURS, *EVERYBODYS} for guest in guests), "all were tried"
    assert not any(guest["identified"] for guest in guests), "it says nothing of itself"


async def test_members_share_boxes_and_strangers_to_the_key_find_nobody(dht: Dht) -> None:
    key, found = b"k" * 32, dict[int, set[str]]()

    def learner(number: int) -> Learn:
        return lambda peer, addresses, source: found.setdefault(number, set()).add(f"{source} {addresses[0]}")

    crowd = [number for number in range(10, 90) if notes.box_of(Identity(bytes([number]) * 32).peer_id) == 3]
    crowd = crowd[:4]
    with trio.fail_after(120):
        for number in crowd:
            await notes_of(number, dht, key, learner(number)).look_once()
        await notes_of(7, dht, key, learner(7)).look_once()
        await notes_of(8, dht, b"another key".ljust(32), learner(8)).look_once()
    assert found[7] == {f"{SOURCE} /ip4/192.0.2.{number}/tcp/4701" for number in crowd}
    assert 8 not in found
    assert len(found[crowd[-1]]) == len(crowd) - 1


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_clock_that_is_a_day_wrong_is_found(
    dht: Dht, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    key, found = f"clock {days}".encode().ljust(32), list[str]()
    with trio.fail_after(60):
        with monkeypatch.context() as patch:
            wrong = time.time() + days * notes.DAY_S
            patch.setattr(public_notes, "time", SimpleNamespace(time=lambda: wrong))
            mistaken = notes_of(21, dht, key, lambda peer, addresses, source: None)
            assert await mistaken.look_once() is Outcome.WROTE
        lonely = notes_of(22, dht, key, lambda peer, addresses, source: found.extend(addresses))
        await lonely.look_once()
        assert not found, "at first it looks into today's boxes"
        await lonely.look_once()
    assert found == ["/ip4/192.0.2.21/tcp/4701"]


async def test_liars_and_mute_nodes_keep_nobody_from_being_found(
    js_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of five: one is mute, one begins a message of 32 GiB, one names 300 nodes that are not there."""
    monkeypatch.setattr(public_dht, "ASK_LIMIT_S", 2.0)
    found: list[str] = []
    with running_dht(js_folder, hostile=3) as dht, trio.fail_after(120):
        lonely = notes_of(11, dht, KEY, lambda peer, addresses, source: None)
        assert await lonely.look_once() is Outcome.WROTE, "it is kept where somebody is honest"
        await notes_of(12, dht, KEY, lambda peer, addresses, source: found.extend(addresses)).look_once()
    assert found == ["/ip4/192.0.2.11/tcp/4701"]


async def test_a_record_that_another_key_signed_is_not_kept_by_the_dht(dht: Dht) -> None:
    """What keeps strangers from overwriting a box is the DHT's own validator: show that ours takes part."""
    box, other = bytes(32), b"x" * 32
    public = notes.public_key(box)
    name = ipns.name_of(public)

    def everything(value: bytes) -> bool:
        return True

    until = time.time() + 3600
    mine, forged = (ipns.sign(seed, ipns.Record(b"content", 1, until)) for seed in (box, other))
    with trio.fail_after(60):
        async with public_client(dht.entrances[:1], txt_records) as client:
            witnesses = client.witnesses = Witnesses(needed=1)
            values, closest = await client.get(
                ipns.name_of(public), everything, enough=kad.CLOSEST, limit_s=30
            )
            assert values == ()
            assert len(closest) == NODES, "every kind of key is understood"
            assert await client.put(name, forged, closest) == 0
            assert await client.put(name, mine, closest) == NODES
            values, _ = await client.get(name, everything, enough=kad.CLOSEST, limit_s=30)
            while not witnesses.believed(["/ip4/10.0.0.1/tcp/4701"]):
                await trio.sleep(0.05)
    assert witnesses.believed(["/ip4/10.0.0.1/tcp/4701"]) == ("/ip4/127.0.0.1/tcp/4701",)
    assert [ipns.read(public, value, until - 10).content for value in values] == [b"content"]
