"""How do roles and admission fill the blanks of the ledger's policy?

The ledger knows neither roles nor members; it asks through callables: what did a quorum certify with this
value (`genesis/...`), does this author speak for that cluster (`assign/...`, by `p2p_roles.grants`), does it
hold the mesh's root (`accepted/...`, `access/rules`, `drain/...`), is it a member, and did the mesh's
authority sign this (`Admission`, for ``member/...`` and its kin)?
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

from p2p_network.admission.trust import Trust
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.policy import Policy
from p2p_roles import assign, grants
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import GENESIS, Genesis
from p2p_roles.upgrade import model as upgrade

ACCESS_KEY: Final = "access/rules"
_BY_GENERATION: Final = ("seat/", "generation/", "invite/", "withdrawn/", "use/")


class Judge(Protocol):
    """Who is a member; see `node.admission.Admission`."""

    @property
    def trust(self) -> Trust: ...

    def admits(self, author: str) -> bool: ...

    def spoke(self, author: str, wall_ms: int) -> bool: ...


class Known(Protocol):
    """What is known already; see `p2p_network.ledger.core.Ledger`."""

    def items(self, prefix: str) -> Iterable[Entry]: ...


def ledger_policy(mesh_id: str, ledger: Callable[[], Known], judge: Judge) -> Policy:
    """The policy of one mesh. `ledger`: the one that it judges for, asked for once there is an entry."""

    def decided(key: str, value: bytes) -> bytes | None:
        if not key.startswith("genesis/"):
            return judge.trust.proven(key, value)
        if not certificates.verify_entry(key, value, mesh_id):
            return None
        return certificates.decode(value).value

    def may_write(key: str, author: str) -> bool:
        """Of roles and upgrades speak the cluster's servers, of routes, access and drains the holders of the
        root; of its own drain a node itself."""
        kind, _, rest = key.partition("/")
        if kind == "grant":  # anybody's: it counts where a chain leads to its author
            return grants.grantor_of(key) == author
        if kind not in ("assign", "upgrade"):
            certificate = judge.trust.certificate_of(author)
            if kind == "drain" and author == rest:
                return True
            known = key == ACCESS_KEY or kind in ("accepted", "drain")
            return known and certificate is not None and certificate.is_issuer
        scope = rest if kind == "upgrade" else rest.rpartition("/")[0]
        return speaks_for(scope, author, ledger())

    def outlived(keys: Collection[str]) -> set[str]:
        gone: set[str] = set()
        for scope in {scope for key in keys if (scope := certificates.scope_of(key))}:
            entries = ledger().items(certificates.prefix_of(scope))
            gone |= {
                *certificates.outlived(scope, ((e.key, e.value) for e in entries if e.value is not None))
            }
        if any(key.startswith(_BY_GENERATION) for key in keys):
            gone |= judge.trust.outlived()
        return gone

    return Policy(
        decided=decided,
        may_write=may_write,
        admitted=judge.admits,
        spoke=judge.spoke,
        owns=judge.trust.owns,
        fence=_fence_of,
        outlived=outlived,
    )


def _fence_of(key: str, value: bytes) -> int:
    return upgrade.fence_of(value) if key.startswith("upgrade/") else assign.fence_of(key, value)


def speaks_for(scope: str, author: str, known: Known) -> bool:
    """Whether what `author` says of the roles of a cluster is believed."""
    return grants.speaks(
        author,
        authorities(scope, known),
        lambda server: (grants.grantor_of(e.key) for e in known.items(grants.prefix_of(scope, server))),
    )


def authorities(scope: str, known: Known) -> frozenset[str]:
    """The certified servers of READY epochs of a scope: of one epoch but for contradictions."""
    decided: dict[int, Genesis] = {}
    up: set[int] = set()
    for entry in known.items(certificates.prefix_of(scope)):
        if entry.value is None or certificates.scope_of(entry.key) != scope:
            continue
        held = certificates.decode(entry.value)
        if held.instance.decree == GENESIS:
            decided[held.instance.epoch] = certificates.genesis_of(held)
        elif certificates.is_ready(held):
            up.add(held.instance.epoch)
    return frozenset(
        peer for epoch in up & decided.keys() for peer in (decided[epoch].initiator, *decided[epoch].servers)
    )
