"""Does anybody get in, or say anything at all, without being a member? Real hosts over loopback TCP."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_network.admission import handshake
from p2p_network.admission.documents import Authority, certify, encode
from p2p_network.admission.kept import Kept, authority_of, from_network_token
from p2p_network.core.ids import PeerId
from p2p_network.host import guards
from p2p_network.host.gate import HEADER_BYTES
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity
from p2p_network.token import NetworkToken, mesh_keys

TOKEN = NetworkToken(bytes(range(32)))
KEYS = mesh_keys(TOKEN)
NOW_MS = 1_900_000_000_000


class Forgets:
    """A disk that keeps nothing."""

    def get(self, key: str) -> bytes | None:
        return None

    def set(self, key: str, value: bytes) -> None:
        """Nothing."""


def identity(n: int) -> Identity:
    return Identity(bytes([n]) * 32)


def member(n: int, kept: Kept | None = None) -> tuple[MeshHost, Admission]:
    """A host with a gate; without `kept` it has the network token."""
    runtime = TrioRuntime()
    admission = Admission(
        runtime=runtime,
        identity=identity(n),
        kept=kept or from_network_token(TOKEN, "kairos", None, identity(n).peer_id, NOW_MS),
        durable=Forgets(),
        moved=runtime.signal(),
    )
    host = MeshHost(
        identity=identity(n),
        psk=KEYS.psk,
        mesh_id=KEYS.mesh_id,
        rendezvous=KEYS.rendezvous,
        listen=["127.0.0.1:0"],
        mdns=False,
        dht=False,
        gate=admission,
    )
    return host, admission


def stranger(n: int, certificate: bytes = b"") -> tuple[MeshHost, Admission]:
    """Somebody who knows the pre-shared key, and has this certificate or none."""
    kept = Kept(
        KEYS.mesh_id, "kairos", KEYS.rendezvous, 1, {1: KEYS.psk}, {1: authority_of(KEYS).public}, certificate
    )
    return member(n, kept)


@asynccontextmanager
async def running(*hosts: MeshHost) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for h in hosts:
                await nursery.start(h.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


async def test_two_members_admit_each_other_and_talk() -> None:
    (a, _), (b, gate) = member(1), member(2)
    a.serve("echo", echo)
    async with running(a, b):
        b.learn(a.peer_id, a.addresses(), "test")
        await until(lambda: a.connected() and b.connected())
        assert await b.request(a.peer_id, "echo", b"hello") == b"hello"
        assert gate.verdict(a.peer_id).is_admitted
    assert (a.rejected, b.rejected) == (0, 0)


OTHER = Authority(b"another root".ljust(32), KEYS.mesh_id, 1)
OURS = authority_of(KEYS)


@pytest.mark.parametrize(
    ("certificate", "cause"),
    [
        (b"", "uncertified"),
        (b"\xff" * 40, "malformed"),
        (encode(certify(OTHER, identity(9).peer_id, issued_ms=1)), "forged"),
        (encode(certify(OURS, identity(1).peer_id, issued_ms=1)), "forged"),  # somebody else's: captured
        (encode(certify(OURS, identity(9).peer_id, issued_ms=1, expires_ms=2)), "expired"),
    ],
    ids=["none", "garbage", "another-root", "captured", "expired"],
)
async def test_who_has_the_key_but_no_certificate_of_its_own_gets_nothing(
    certificate: bytes, cause: str
) -> None:
    (a, _), (x, out) = member(1), stranger(9)
    # its own program would not even show what is no certificate of it
    out.kept = Kept(KEYS.mesh_id, "kairos", KEYS.rendezvous, 1, {1: KEYS.psk}, {1: OURS.public}, certificate)
    async with running(a, x):
        x.learn(a.peer_id, a.addresses(), "test")
        await until(lambda: a.refused.get(cause))
        assert not a.connected()
        await until(lambda: x.refused.get(f"by_peer_{cause}"))
        assert not x.connected(), "it was told one word, and no channel was opened"


async def test_a_member_that_dials_does_not_admit_a_stranger_that_answers() -> None:
    (a, _), (x, gate) = member(1), stranger(9)

    async def welcome(peer: PeerId, claim: bytes) -> tuple[bytes, str]:
        mine = handshake.Claim(KEYS.mesh_id, encode(certify(OTHER, x.peer_id, issued_ms=1)))
        return handshake.encode(handshake.Answer("", mine)), ""

    gate.answer = welcome  # type: ignore[method-assign]
    async with running(a, x):
        a.learn(x.peer_id, x.addresses(), "test")
        await until(lambda: a.refused.get("forged"))
        assert not a.connected()


async def test_every_other_protocol_is_refused_before_the_admission() -> None:
    a, _ = member(1)
    async with running(a) as nursery:
        swarm = guards.MeshSwarm(identity(9).seed, KEYS.psk)
        host = guards.MeshBasicHost(swarm, lambda: ())
        swarm.attach(nursery)
        (endpoint,) = guards.endpoints_of(a.addresses())
        for protocol in (
            "/ipfs/id/1.0.0",
            "/ipfs/ping/1.0.0",
            "/ipfs/kad/1.0.0",
            f"/kairos-p2p/{KEYS.mesh_id}/1",
        ):
            conn = await swarm.reach([endpoint], a.peer_id)
            with pytest.raises(Exception, match=r"no .* stream"):
                await host.open_on(conn, protocol)
            await conn.muxed_conn.event_closed.wait()
        assert not a.connected()
        await until(lambda: a.refused.get("malformed") == 4)


@pytest.mark.parametrize("size", [0, 3, 1 << 30, 200_000], ids=["empty", "cut", "oversized", "too-much"])
async def test_garbage_in_the_admission_ends_the_connection(size: int) -> None:
    a, _ = member(1)
    async with running(a) as nursery:
        swarm = guards.MeshSwarm(identity(9).seed, KEYS.psk)
        host = guards.MeshBasicHost(swarm, lambda: ())
        swarm.attach(nursery)
        (endpoint,) = guards.endpoints_of(a.addresses())
        conn = await swarm.reach([endpoint], a.peer_id)
        stream = await host.open_on(conn, guards.ADMISSION_PROTOCOL)
        await stream.write(size.to_bytes(HEADER_BYTES, "big") + os.urandom(min(size, 100_000)))
        if size == 3:
            await stream.write(b"more than it said")
        await until(lambda: a.refused.get("malformed"))
        assert await stream.read() in (b"",) or not a.connected()
        assert not a.connected()


async def test_silence_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "ADMISSION_LIMIT_S", 0.3)
    a, _ = member(1)
    async with running(a) as nursery:
        swarm = guards.MeshSwarm(identity(9).seed, KEYS.psk)
        guards.MeshBasicHost(swarm, lambda: ())
        swarm.attach(nursery)
        (endpoint,) = guards.endpoints_of(a.addresses())
        conn = await swarm.reach([endpoint], a.peer_id)
        await conn.muxed_conn.event_closed.wait()
        await until(lambda: a.refused.get("silent"))


async def test_a_revoked_peer_is_expelled_at_once_and_not_let_in_again() -> None:
    (a, gate), (b, _) = member(1), member(2)
    async with running(a, b):
        b.learn(a.peer_id, a.addresses(), "test")
        await until(lambda: a.connected() and b.connected())
        from p2p_network.admission.documents import Revocation

        proof = encode(OURS.signed(Revocation(b.peer_id, 1, NOW_MS, "stolen")))
        assert gate.trust.tell_revoked(proof) is not None
        a.expel(b.peer_id, "revoked")
        await until(lambda: not a.connected() and not b.connected())
        await until(lambda: a.refused.get("revoked"))
        assert not a.connected()
        await until(lambda: b.refused.get("by_peer_revoked"))
