"""Does a data plane bear whatever a peer with the right keys, or a stranger, may send it?

``KP2P_FUZZ_S`` says for how long (default: a few seconds), ``KP2P_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path

import pytest
import trio
import two_planes
from fake_peers import FakeCaller, FakePeer, bundle
from plane_traffic import ping
from two_planes import Field, connect

from p2p_network.dataplane import records

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")
FUZZ_S = float(os.environ.get("KP2P_FUZZ_S", "4"))
SEED = int(os.environ.get("KP2P_FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
KEPT_MB = 8
"""What a data plane may have grown by: buffers that were touched for the first time."""


class Fuzzer:
    """Makes entries, records and datagrams between honest and absurd."""

    def __init__(self, seed: int, source: str, target: str) -> None:
        self._random = random.Random(seed)
        self._source, self._target = socket.inet_aton(source), socket.inet_aton(target)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def junk(self, limit: int) -> bytes:
        return self._random.randbytes(self._random.randrange(limit))

    def changed(self, raw: bytes) -> bytes:
        """A few bits, or the length, are other ones."""
        out = bytearray(raw)
        for _ in range(self._random.randrange(4)):
            if out:
                out[self._random.randrange(len(out))] ^= 1 << self._random.randrange(8)
        if self.chance(0.1):
            del out[self._random.randrange(len(out) + 1) :]
        return bytes(out)

    def packet(self) -> bytes:
        """From the peer to the other one, nearly."""
        payload = self.junk(200 if self.chance(0.8) else 20000)
        protocol = self._random.choice((1, 6, 17, 58, 4, self._random.randrange(256)))
        total = (20 + len(payload)).to_bytes(2, "big")
        if self.chance(0.2):
            return self.changed(
                bytes([0x60, 0, 0, 0, *len(payload).to_bytes(2, "big"), protocol, 64]) + payload
            )
        flags = bytes([0, 0]) if self.chance(0.7) else self._random.randbytes(2)
        head = bytes([0x45, 0]) + total + bytes(2) + flags + bytes([64, protocol, 0, 0])
        raw = head + self._source + self._target + payload
        return self.changed(raw) if self.chance(0.5) else raw

    def vnet(self) -> bytes:
        if self.chance(0.4):
            return bytes(10)
        kind = self._random.choice((0, 1, 3, 4, 5, 0x80 | 1, self._random.randrange(256)))
        return bytes([self._random.randrange(4), kind]) + self._random.randbytes(8)

    def batch(self) -> bytes:
        """Entries of a record, or what looks like them."""
        entries = []
        for _ in range(self._random.randrange(1, 8)):
            pick = self._random.random()
            if pick < 0.7:
                entries.append(records.packet_entry(self.vnet(), self.packet() or b"E"))
            elif pick < 0.9:
                entries.append(
                    records.control_entry(self._random.randrange(256), self._random.randrange(1 << 32))
                )
            else:
                entries.append(self.junk(64))
        whole = b"".join(entries)[:60000]
        return self.changed(whole) if self.chance(0.2) else whole

    def of_records(self, fake: FakePeer, number: int) -> None:
        """One connection: greeted or not, then records until the other end has had enough."""
        if self.chance(0.2):
            with fake.connect() as sock:
                sock.sendall(self.junk(400))
            return
        sock, flight, sealer = fake.greet(number)
        frame = memoryview(bytearray(1 << 17))
        with sock:
            try:
                for _ in range(self._random.randrange(20)):
                    sealed = bytes(frame[: sealer.seal_into(self.batch(), frame)])
                    sock.sendall(self.changed(sealed) if self.chance(0.05) else sealed)
            except OSError:
                pass  # it was thrown out
        if self.chance(0.1):
            with fake.connect() as sock:
                sock.sendall(self.changed(flight))

    def of_datagrams(self, fake: FakeCaller, number: int) -> None:
        """One association: greeted, then datagrams."""
        for _ in range(self._random.randrange(10)):
            fake.put(self.junk(1400))
        call, sealer = fake.greet(number)
        for _ in range(self._random.randrange(40)):
            sealed = bundle(sealer, self.batch()[:1200])
            fake.put(self.changed(sealed) if self.chance(0.3) else sealed)
        fake.put(self.changed(call))


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@pytest.mark.timeout(FUZZ_S + 120)
async def test_nothing_a_peer_sends_ends_it_or_hurts_another() -> None:
    print(f"KP2P_FUZZ_SEED={SEED}")
    with Field(3, hub=True) as lab:
        planes = [await place.configured() for place in lab.places]
        one, two, three = lab.places
        await connect(one, two)
        fuzzer = Fuzzer(SEED, three.inner, one.inner)
        rounds = 0

        async def attack(seconds: float) -> None:
            nonlocal rounds
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                rounds += 1
                fake, caller = FakePeer(lab), FakeCaller(lab)
                await fake.introduce(planes[0])
                await trio.to_thread.run_sync(fuzzer.of_records, fake, 1)
                await caller.introduce(planes[0])
                with caller.sock:
                    await trio.to_thread.run_sync(fuzzer.of_datagrams, caller, 1)

        await attack(FUZZ_S / 2)
        before = rss_mb(planes[0].pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attack, FUZZ_S / 2)
            told = await trio.to_thread.run_sync(ping, one, two.inner)
            assert " 0% packet loss" in told, "another peer's packets pass meanwhile"
        stats = await planes[0].stats()
        assert one.daemon is not None
        assert one.daemon.poll() is None, one.log.read_text()
        assert "Traceback" not in one.log.read_text()
        drops = next(p for p in stats.peers if p.peer == three.name).drops
        print(f"{rounds} rounds; {stats.refused} connections refused; dropped of the last session: {drops}")
        assert rss_mb(planes[0].pid) < before + KEPT_MB
        assert " 0% packet loss" in ping(one, two.inner)
        for plane in planes:
            await plane.aclose()
