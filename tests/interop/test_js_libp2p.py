"""Does a plain js-libp2p node understand ours? It dials, identifies and pings, with the pre-shared key."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_network.admission import handshake
from p2p_network.admission.kept import from_network_token
from p2p_network.core.ids import PeerId
from p2p_network.host.guards import ADMISSION_PROTOCOL
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.token import NetworkToken, mesh_keys

pytestmark = pytest.mark.xdist_group("npm")

TOKEN = NetworkToken(bytes(range(32)))
KEYS = mesh_keys(TOKEN)
NOW_MS = 1_900_000_000_000
JS_SEED = b"\x07" * 32


class Forgets:
    """A disk that keeps nothing."""

    def get(self, key: str) -> bytes | None:
        return None

    def set(self, key: str, value: bytes) -> None:
        """Nothing."""


def admission_of(identity: Identity) -> Admission:
    runtime = TrioRuntime()
    return Admission(
        runtime=runtime,
        identity=identity,
        kept=from_network_token(TOKEN, "kairos", None, identity.peer_id, NOW_MS),
        durable=Forgets(),
        moved=runtime.signal(),
    )


@asynccontextmanager
async def our_node(*, gate: bool) -> AsyncIterator[MeshHost]:
    identity = Identity(b"\x01" * 32)
    host = MeshHost(
        identity=identity,
        psk=KEYS.psk,
        mesh_id=KEYS.mesh_id,
        rendezvous=KEYS.rendezvous,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=False,
        gate=admission_of(identity) if gate else None,
    )
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            yield host
            nursery.cancel_scope.cancel()


async def plain_node(
    folder: Path, host: MeshHost, psk: bytes = KEYS.psk, **more: str | int
) -> dict[str, Any]:
    """What a plain js-libp2p node says of an attempt to dial, identify and ping."""
    address = f"{host.addresses()[0]}/p2p/{host.peer_id}"
    config = {"psk": psk.hex(), "seed": JS_SEED.hex(), "address": address, **more}
    run = partial(subprocess.run, capture_output=True, check=True, timeout=90)
    done = await trio.to_thread.run_sync(lambda: run(["node", str(folder / "plain.mjs"), json.dumps(config)]))
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def test_it_dials_identifies_and_pings_with_the_key(js_folder: Path) -> None:
    async with our_node(gate=False) as host:
        told = await plain_node(js_folder, host)
        assert "error" not in told, told
        assert told["self"] == Identity(JS_SEED).peer_id
        assert told["peer"] == host.peer_id
        assert told["ping_ms"] >= 0
        assert {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"} <= set(told["protocols"])
        assert told["addresses"] == list(host.addresses())


async def test_with_another_key_it_gets_nothing(js_folder: Path) -> None:
    async with our_node(gate=False) as host:
        told = await plain_node(js_folder, host, psk=b"q" * 32, limit_ms=6000)
        assert "ping_ms" not in told
        assert "error" in told


async def test_an_agent_lets_it_do_so_with_a_certificate_and_not_without(js_folder: Path) -> None:
    """The admission is one stream and two messages, which any libp2p can speak."""
    async with our_node(gate=True) as host:
        told = await plain_node(js_folder, host, limit_ms=6000)
        assert "error" in told
        assert "ping_ms" not in told
        assert sum(host.refused.values()) >= 1
        member = Identity(JS_SEED)
        claim = admission_of(member).claim(PeerId(host.peer_id))
        assert handshake.decode_claim(claim)
        told = await plain_node(js_folder, host, protocol=ADMISSION_PROTOCOL, claim=claim.hex())
        assert "error" not in told, told
        assert told["ping_ms"] >= 0
        assert "/ipfs/ping/1.0.0" in told["protocols"]
