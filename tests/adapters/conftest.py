"""A fake agent behind the real local API, for the tests of the API and of the command line."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p_bootstrap.api.audit import AuditLog
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.api.server import serve_api
from p2p_bootstrap.api.service import (
    ConfirmedDoc,
    EventDoc,
    Goal,
    InvitedDoc,
    InviteDoc,
    KubeconfigsDoc,
    PeerDoc,
    RegionRow,
    RegionsDoc,
    RevokedDoc,
    RoleRow,
    RotatedDoc,
    StatusDoc,
    find_node,
)
from p2p_network.core.errors import NotPermitted, RoleError, TimedOut

PEERS = tuple(f"12D3KooWNodeNumber{n}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA{n}" for n in range(4))
STATUS: StatusDoc = {
    "node": {
        "peer": PEERS[0],
        "hostname": "edge-0",
        "region": "west",
        "zone": "a",
        "version": "0.1.0",
        "pid": 4711,
    },
    "mesh": {
        "mesh_id": "0123456789abcdef",
        "network_id": "kairos",
        "state": "joined",
        "peers": 2,
        "known": 3,
    },
    "admission": {
        "state": "member",
        "reason": "this node is a member",
        "generation": 1,
        "issuer": True,
        "role": "any",
        "region": "",
        "expires_ms": 0,
        "refused": {},
        "revoked": 0,
    },
    "nat": {
        "kind": "cone",
        "seen_as": "198.51.100.7:4702",
        "observers": 2,
        "reachable": False,
        "reached_at": [],
        "error": "no answer",
        "reason": "2 members see its datagrams come from 198.51.100.7:4702",
    },
    "vpn": {
        "state": "up",
        "device": "kp2p0",
        "ipv4": "10.144.3.9",
        "ipv6": "fd12::9",
        "mtu": 1420,
        "error": "",
    },
    "names": {"state": "off", "origin": "", "error": ""},
    "role": {
        "state": "MEMBER",
        "role": "server",
        "reason": "edge-0 initialised the cluster: it won the genesis of epoch 1 with 3 of 4 votes",
        "epoch": 1,
        "cluster_id": "c-77aa",
        "ready": True,
    },
    "k3s": {"state": "running", "version": "v1.33.1+k3s1", "pid": 4800, "error": ""},
    "clusters": [
        {
            "name": "kairos/west",
            "cluster_id": "c-77aa",
            "servers": 3,
            "agents": 1,
            "ready": 4,
            "self": True,
        },
        {
            "name": "kairos/east",
            "cluster_id": "c-88bb",
            "servers": 3,
            "agents": 2,
            "ready": 4,
            "self": False,
        },
    ],
    "phases": [
        {"name": "mesh", "at_s": 0.4},
        {"name": "role", "at_s": 6.02},
        {"name": "ready", "at_s": 75.0},
    ],
}


def role_row(number: int, **changes: Any) -> RoleRow:
    row: RoleRow = {
        "peer": PEERS[number],
        "hostname": f"edge-{number}",
        "region": "west",
        "cluster": "kairos/west",
        "ipv4": f"10.144.3.{9 + number}",
        "role": "server" if number < 3 else "agent",
        "state": "MEMBER",
        "ready": True,
        "reason": f"node {number} has its reason",
        "self": number == 0,
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


def peer_doc(number: int, **changes: Any) -> PeerDoc:
    peer: PeerDoc = {
        "peer": PEERS[number],
        "hostname": f"edge-{number}",
        "region": "east",
        "zone": "",
        "state": "alive",
        "ipv4": f"10.144.3.{9 + number}",
        "ipv6": "",
        "address": f"/ip4/192.0.2.{number}/tcp/4701",
        "rtt_ms": 1.25,
        "carrier": "tcp",
        "carrier_reason": "records over TCP carry most",
        "carrier_rtt_ms": 0.5,
        "loss": 0.0125,
        "rx_rate_bps": 2_500_000.0,
        "tx_rate_bps": 0.0,
        "relay": "",
        "relay_reason": "",
        "nat": "cone",
        "seen_as": f"192.0.2.{number}:4702",
        "keepalive_s": 15.0,
        "cluster": "kairos/east",
        "role": "server",
        "rx_bytes": 1_500_000,
        "tx_bytes": 0,
        "admission": "member",
        "generation": 1,
        "reason": "a channel to it is open",
    }
    return {**peer, **changes}  # type: ignore[typeddict-item]


def region_row(number: int, **changes: Any) -> RegionRow:
    row: RegionRow = {
        "peer": PEERS[number],
        "hostname": f"edge-{number}",
        "region": "west",
        "zone": "",
        "how": "declared",
        "inferred": "west",
        "why": "declared",
        "error": 0.1,
        "measured_ms": None if number == 0 else 40.25,
        "estimated_ms": None if number == 0 else 41.0,
        "self": number == 0,
    }
    return {**row, **changes}  # type: ignore[typeddict-item]


class FakeAgent:
    """An AgentService whose answers a test sets."""

    def __init__(self) -> None:
        self.document = copy.deepcopy(STATUS)
        self.peer_docs = [peer_doc(1), peer_doc(2, state="dead", rtt_ms=None, carrier="none", address="")]
        self.rows = [role_row(n) for n in range(4)]
        self.log = EventLog()
        self.goals: set[Goal] = {"mesh", "role", "ready"}
        self.kubeconfig_text: str | None = (
            "clusters:\n- name: default\n  cluster: {server: 'https://127.0.0.1:6443'}\n"
        )
        self.calls: list[str] = []
        self.waiting = 0
        self.broken = False
        self.root: str | None = "kp2p1_AAAABBBBCCCCDDDD"

    def status(self) -> StatusDoc:
        if self.broken:
            raise ZeroDivisionError("a bug, with the token kp2p1_AAAABBBBCCCCDDDD in it")
        return self.document

    def peers(self) -> Sequence[PeerDoc]:
        return self.peer_docs

    def roles(self) -> Sequence[RoleRow]:
        return self.rows

    def role_of(self, name: str) -> RoleRow:
        return find_node(self.rows, name)

    def events_since(self, seq: int) -> Sequence[EventDoc]:
        return self.log.since(seq)

    async def wait_events(self, seq: int) -> None:
        await self.log.wait(seq)

    async def kubeconfig(self) -> str:
        if self.kubeconfig_text is None:
            raise RoleError("edge-0 is an agent and has no kubeconfig", hint="ask a server: edge-1")
        return self.kubeconfig_text

    async def kubeconfigs(self) -> KubeconfigsDoc:
        return {"kubeconfig": "current-context: kairos-west\n", "missing": {"kairos/east": "it says no"}}

    async def regions(self) -> RegionsDoc:
        return {
            "nodes": [region_row(0), region_row(1, region="", how="", inferred="region-ab12cd")],
            "pairs": [{"a": PEERS[0], "b": PEERS[1], "measured_ms": 40.25, "estimated_ms": 41.0}],
        }

    async def confirm_regions(self) -> Sequence[ConfirmedDoc]:
        self.calls.append("confirm")
        return [
            {
                "peer": PEERS[1],
                "hostname": "edge-1",
                "region": "region-ab12cd",
                "how": "confirmed",
                "error": "",
            },
            {"peer": PEERS[2], "hostname": "edge-2", "region": "", "how": "", "error": "too few round trips"},
        ]

    async def wait_for(self, goal: Goal, timeout_s: float) -> StatusDoc:
        self.waiting += 1
        try:
            with trio.move_on_after(timeout_s):
                while goal not in self.goals:
                    await trio.sleep(0.01)
                return self.document
        finally:
            self.waiting -= 1
        raise TimedOut(f"{goal} was not reached")

    async def revoke(self, name: str, reason: str) -> RevokedDoc:
        row = find_node(self.rows, name)
        self.calls.append(f"revoke {row['hostname']}: {reason}")
        return {"peer": row["peer"], "hostname": row["hostname"]}

    async def invite(
        self, *, role: str, region: str, uses: int, ttl_s: float, member_ttl_s: float
    ) -> InvitedDoc:
        self.calls.append(f"invite {role} {region} {uses} {ttl_s:g} {member_ttl_s:g}")
        return {"token": "KP2PJ1-MZXW6YTBOI", "invite": self.invites()[0]}

    def invites(self) -> Sequence[InviteDoc]:
        invite: InviteDoc = {
            "id": "00112233aabbccdd",
            "state": "open",
            "role": "agent",
            "region": "west",
            "uses": 3,
            "used_by": [PEERS[1]],
            "created_ms": 1_900_000_000_000,
            "expires_ms": 1_900_003_600_000,
        }
        return [invite]

    async def withdraw(self, invite: str) -> None:
        self.calls.append(f"withdraw {invite}")

    async def rotate(self, *, force: bool) -> RotatedDoc:
        if self.root is None:
            raise NotPermitted("this node does not hold the root of the mesh", hint="run it on another")
        return {"token": self.root, "generation": 2}

    async def leave(self) -> None:
        self.calls.append("leave")

    async def stop(self) -> None:
        self.calls.append("stop")
        self.stopping.set()

    def metrics_text(self) -> str:
        return "# HELP kairos_p2p_peers live peers\nkairos_p2p_peers 2\n"

    stopping: trio.Event


class RunningAgent:
    """A fake agent that answers on `socket` from a thread of its own until `end`."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.audit = socket.with_name("audit.log")
        self.fake = FakeAgent()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10), "the fake agent does not listen"

    async def _main(self) -> None:
        self.fake.stopping = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, self.fake, self.socket, AuditLog(self.audit, max_bytes=2048))
            self._ready.set()
            await self.fake.stopping.wait()
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Stop it and wait until it is gone."""
        if self._thread.is_alive():
            with contextlib.suppress(trio.RunFinishedError):  # it was told to leave, and has
                self._token.run_sync_soon(self.fake.stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server does not end when it is cancelled"


def until(condition: Callable[[], object], *, what: str, timeout_s: float = 10.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into, with a short path (sockets allow 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="kp2p-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def agent(open_folder: Path) -> Iterator[RunningAgent]:
    """A running fake agent."""
    running = RunningAgent(open_folder / "agent.sock")
    yield running
    running.end()
