"""What has the demo seen, and was it all? Pure.

Documents of the agents' API and of the Kubernetes API are turned into rows here; whatever is missing in
them reads as empty, never as a crash: a demo that fails shall still show how far it came.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from p2p_simulations.lab.topology import Place

PHASES: Final = ("mesh", "vpn", "genesis", "role", "ready")


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node says of itself. `phases` are seconds since its agent's start."""

    name: str
    region: str
    answers: bool = False
    hostname: str = ""
    ipv4: str = ""
    ipv6: str = ""
    role: str = ""
    state: str = ""
    reason: str = ""
    ready: bool = False
    k3s_version: str = ""
    error: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ApiNode:
    """A node of the cluster as the Kubernetes API lists it."""

    name: str
    ready: bool
    roles: str
    region: str
    ipv4: str
    version: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that the demo looked at.

    Attributes:
        api_url: where the node list was read.
        pings_v4, pings_v6: (from, to) -> round trip in ms, None if lost.
        times: (what, seconds since the agents' processes were started) as seen from outside; a phase once all
            nodes have reached it.
        memory: kind of process -> resident bytes, one per process.
        without_kubelet: names of nodes whose k3s runs no kubelet (--disable-agent): the cluster lists no Node
            for them.
    """

    nodes: tuple[NodeView, ...]
    api_nodes: tuple[ApiNode, ...] = ()
    api_url: str = ""
    api_error: str = ""
    pings_v4: Mapping[tuple[str, str], float | None] = field(default_factory=dict)
    pings_v6: Mapping[tuple[str, str], float | None] = field(default_factory=dict)
    times: tuple[tuple[str, float], ...] = ()
    memory: Mapping[str, Sequence[int]] = field(default_factory=dict)
    without_kubelet: frozenset[str] = frozenset()


def node_view(place: Place, document: Any) -> NodeView:
    """A row from the answer to ``GET /v1/status``; None is an agent that does not answer."""
    if not isinstance(document, dict):
        return NodeView(place.name, place.region)
    node, vpn, role, k3s = (_section(document, key) for key in ("node", "vpn", "role", "k3s"))
    phases = {}
    for phase in document.get("phases") or ():
        if isinstance(phase, dict) and isinstance(phase.get("at_s"), int | float):
            phases[str(phase.get("name"))] = float(phase["at_s"])
    return NodeView(
        name=place.name,
        region=str(node.get("region") or ""),
        answers=True,
        hostname=str(node.get("hostname") or ""),
        ipv4=_bare(vpn.get("ipv4")),
        ipv6=_bare(vpn.get("ipv6")),
        role=str(role.get("role") or ""),
        state=str(role.get("state") or ""),
        reason=str(role.get("reason") or ""),
        ready=role.get("ready") is True,
        k3s_version=str(k3s.get("version") or ""),
        error=str(vpn.get("error") or k3s.get("error") or ""),
        phases=phases,
    )


def api_nodes(document: Any) -> tuple[ApiNode, ...]:
    """Rows from a Kubernetes NodeList."""
    rows = []
    for item in _section(document, "items", list):
        metadata, status = _section(item, "metadata"), _section(item, "status")
        labels = _section(metadata, "labels")
        roles = [key.partition("/")[2] for key in labels if key.startswith("node-role.kubernetes.io/")]
        conditions = {c.get("type"): c.get("status") for c in _section(status, "conditions", list)}
        addresses = {a.get("type"): a.get("address") for a in _section(status, "addresses", list)}
        rows.append(
            ApiNode(
                name=str(metadata.get("name") or ""),
                ready=conditions.get("Ready") == "True",
                roles=",".join(sorted(roles)) or "-",
                region=str(labels.get("topology.kubernetes.io/region") or ""),
                ipv4=str(addresses.get("InternalIP") or ""),
                version=str(_section(status, "nodeInfo").get("kubeletVersion") or ""),
            )
        )
    return tuple(sorted(rows, key=lambda row: row.name))


def waiting_for(nodes: Iterable[NodeView]) -> tuple[str, ...]:
    """One sentence per node that is not ready: what it says it is doing."""
    return tuple(_not_ready(node) for node in nodes if not node.ready)


def missing_in_api(survey: Survey) -> tuple[str, ...]:
    """What the cluster's own node list lacks; () if every node of the lab is Ready in it."""
    if survey.api_error:
        return (survey.api_error,)
    problems = []
    for node in survey.nodes:
        found = [row for row in survey.api_nodes if node.hostname == row.name or node.ipv4 == row.ipv4]
        if node.name in survey.without_kubelet:
            continue
        if not found:
            problems.append(f"{node.name} is not in the cluster's node list")
        elif not found[0].ready:
            problems.append(f"{node.name} is NotReady in the cluster's node list")
    if len(survey.api_nodes) > len(survey.nodes):
        problems.append(f"the cluster lists {len(survey.api_nodes)} nodes, the lab has {len(survey.nodes)}")
    return tuple(problems)


def problems(survey: Survey) -> tuple[str, ...]:
    """Everything that should have been seen and was not; () is success."""
    found = [*waiting_for(survey.nodes), *missing_in_api(survey)]
    names = [node.name for node in survey.nodes]
    for family, pings in (("IPv4", survey.pings_v4), ("IPv6", survey.pings_v6)):
        pairs = [(a, b) for a in names for b in names if a != b]
        lost = [f"{a} -> {b}" for a, b in pairs if pings.get((a, b)) is None]
        if lost:
            more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
            found.append(f"ping over the VPN ({family}) was lost: {', '.join(lost[:4])}{more}")
    return tuple(found)


def k3s_kind(survey: Survey) -> str:
    """Whether this was a real k3s, in one sentence."""
    versions = sorted({node.k3s_version for node in survey.nodes if node.k3s_version})
    if not versions:
        return "k3s: none was started"
    if any("simulated" in version for version in versions):
        return f"k3s was SIMULATED ({', '.join(versions)}); K3S_BIN=/path/to/k3s runs a real one"
    return f"k3s was real ({', '.join(versions)})"


def phase_times(nodes: Sequence[NodeView]) -> list[tuple[str, float, float]]:
    """(phase, seconds on the first node, on the last one) for each phase that a node has seen."""
    rows = []
    for phase in PHASES:
        times = [node.phases[phase] for node in nodes if phase in node.phases]
        if times:
            rows.append((phase, min(times), max(times)))
    return rows


def memory_rows(survey: Survey) -> list[tuple[str, float, float]]:
    """(kind of process, median MB, highest MB); MB are 10^6 bytes."""
    return [
        (kind, statistics.median(sizes) / 1e6, max(sizes) / 1e6)
        for kind, sizes in survey.memory.items()
        if sizes
    ]


def _not_ready(node: NodeView) -> str:
    if not node.answers:
        return f"{node.name}: its agent does not answer"
    doing = ": ".join(part for part in (node.state, node.reason) if part) or "no role yet"
    return f"{node.name} is not ready: {doing}" + (f" ({node.error})" if node.error else "")


def _section(document: Any, key: str, kind: type = dict) -> Any:
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, kind) else kind()


def _bare(address: Any) -> str:
    """An address without its prefix length."""
    return str(address or "").partition("/")[0]
