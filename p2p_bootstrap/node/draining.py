"""How is it announced that a node will be away, and what would that mean for its cluster?

Implements `api.drains.Drains`. The announcement itself is an entry of the ledger (`p2p_network.drains`): the
failure detection takes it from there (`Replication`), and so do the servers, which keep its place
(`Authority`) and cordon its Node (`Cordons`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2p_bootstrap.api.drains import DrainDoc
from p2p_bootstrap.api.service import RoleRow, find_node
from p2p_bootstrap.node.replication import Replication
from p2p_network import drains, wire
from p2p_network.core.errors import NotPermitted, RoleError, UsageError
from p2p_network.core.ids import PeerId
from p2p_network.drains import Drain
from p2p_roles.reconcile.cordon import danger
from p2p_roles.view import ViewNode


class Draining:
    """Drains, as the local API sees them.

    Args:
        hostname: of this node, which is named as the one where it was said.
        rows: what every node does.
        issues: whether this node holds the root.
        any_server_does: whether the cluster here needs no majority of its servers.
    """

    def __init__(
        self,
        *,
        self_id: PeerId,
        hostname: str,
        replication: Replication,
        rows: Callable[[], Sequence[RoleRow]],
        issues: Callable[[], bool],
        any_server_does: Callable[[], bool],
    ) -> None:
        self._self_id = self_id
        self._hostname = hostname
        self._replication = replication
        self._rows = rows
        self._issues = issues
        self._any_server_does = any_server_does

    def look(self, name: str, window_s: float) -> DrainDoc:
        """What draining this node for so long would mean."""
        rows = self._rows()
        return self._doc(find_node(rows, name), rows, window_s)

    async def drain(self, name: str, window_s: float, reason: str, *, force: bool) -> DrainDoc:
        """Announce it. Raises UnknownNode, NotPermitted, RoleError."""
        rows = self._rows()
        row = find_node(rows, name)
        self._check_right(row)
        doc = self._doc(row, rows, window_s)
        if doc["danger"] and not force:
            raise RoleError(
                f"{row['hostname']} can't be drained: {doc['danger']}",
                hint="wait until the others are back, or add servers (kairos-p2p apply --servers N); if it "
                "must be: --force",
            )
        until_ms = self._replication.now_ms() + int(window_s * 1000)
        word = Drain(until_ms, reason, self._hostname)
        await self._replication.write(drains.key_of(row["peer"]), wire.encode(word))
        return {**doc, "drained": drains.sentence(word)}

    async def undrain(self, name: str) -> DrainDoc:
        """Take it back. Raises UnknownNode, NotPermitted, UsageError."""
        rows = self._rows()
        row = find_node(rows, name)
        self._check_right(row)
        key = drains.key_of(row["peer"])
        if self._replication.ledger.get(key) is None:
            raise UsageError(f"{row['hostname']} is not drained", hint="see who is with: kairos-p2p peers")
        await self._replication.delete(key)
        return DrainDoc(
            peer=row["peer"],
            hostname=row["hostname"],
            drained="",
            steps=[
                f"{row['hostname']} is a node like any other again: silence is a failure",
                *(["its Kubernetes Node takes pods again"] if row["role"] else []),
            ],
            danger="",
        )

    def _check_right(self, row: RoleRow) -> None:
        if row["peer"] != self._self_id and not self._issues():
            raise NotPermitted(
                "this node does not hold the root of the mesh, so it may drain nobody but itself",
                hint=f"run it on {row['hostname']}, or on a node whose cloud-config has the network token",
            )

    def _doc(self, row: RoleRow, rows: Sequence[RoleRow], window_s: float) -> DrainDoc:
        name, is_server = row["hostname"], row["role"] == "server"
        servers = [
            ViewNode(PeerId(r["peer"]), r["hostname"], alive=r["ready"], ready=r["ready"])
            for r in rows
            if r["role"] == "server" and r["cluster"] == row["cluster"]
        ]
        drained = self._replication.drained
        steps = [f"for {_span(window_s)}, {name} may go without being called dead"]
        if row["role"]:
            steps.append(
                "its Kubernetes Node is cordoned, and its pods are evicted (those of DaemonSets stay)"
            )
        if is_server:
            steps.append(f"it stays one of the {len(servers)} servers, and nobody takes its place")
        steps.append(f"nothing is stopped on it; take it back with: kairos-p2p peer undrain {name}")
        current = drained.get(PeerId(row["peer"]))
        return DrainDoc(
            peer=row["peer"],
            hostname=name,
            drained=drains.sentence(current) if current is not None else "",
            steps=steps,
            danger=danger(
                PeerId(row["peer"]), servers, drained.keys(), any_server_does=self._any_server_does()
            ),
        )


def _span(seconds: float) -> str:
    """Seconds in words that a person reads."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
