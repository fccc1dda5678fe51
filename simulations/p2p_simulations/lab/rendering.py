"""How does a person read what the lab has seen? Pure: rows in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2p_bootstrap.cli.output import Column, plain_table
from p2p_simulations.lab import survey as seen
from p2p_simulations.lab.survey import NodeView, Survey


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header, aligned; what nodes say of themselves cannot steer the terminal."""

    def column(i: int) -> Column[Sequence[str]]:
        return Column(header[i], lambda row: row[i])

    return plain_table(rows, [column(i) for i in range(len(header))])


def node_table(nodes: Sequence[NodeView]) -> str:
    """Name, region, VPN address, role, state and reason."""
    rows = [
        (
            node.hostname or node.name,
            node.region,
            node.ipv4,
            node.role,
            ("ready" if node.ready else node.state.lower() or "starting") if node.answers else "silent",
            node.reason or node.error,
        )
        for node in nodes
    ]
    return table(("NODE", "REGION", "VPN ADDRESS", "ROLE", "STATE", "WHY THIS ROLE"), rows)


def report(survey: Survey) -> str:
    """The demo's whole report."""
    names = [node.name for node in survey.nodes]
    api_rows = [
        (row.name, "Ready" if row.ready else "NotReady", row.roles, row.region, row.ipv4, row.version)
        for row in survey.api_nodes
    ]
    api = (
        table(("NAME", "STATUS", "ROLES", "REGION", "INTERNAL-IP", "VERSION"), api_rows)
        if api_rows
        else _no_api_rows(survey)
    )
    at = f" (GET {survey.api_url}/api/v1/nodes over TLS, with the handed-out kubeconfig)" if api_rows else ""
    parts = [
        ("Nodes", node_table(survey.nodes)),
        (f"The cluster's own node list{at}", api),
        ("Ping over the VPN, IPv4, round trip in ms (row pings column)", matrix(names, survey.pings_v4)),
        ("", ping_line(names, survey.pings_v6)),
        ("Times: since the agent was running, and since its process was started", _times(survey)),
    ]
    if memory := seen.memory_rows(survey):
        rows = [(kind, f"{median:.0f} MB", f"{high:.0f} MB") for kind, median, high in memory]
        parts.append(("Resident memory", table(("PROCESS", "MEDIAN", "HIGHEST"), rows)))
    text = "\n\n".join(f"{title}\n{body}" if title else body for title, body in parts)
    return f"{text}\n\n{seen.k3s_kind(survey)}\n"


def _no_api_rows(survey: Survey) -> str:
    if survey.api_url and survey.without_kubelet:
        return "empty: k3s runs no kubelets here (--disable-agent)"
    return f"not read: {survey.api_error or 'no server was ready'}"


def matrix(names: Sequence[str], pings: Mapping[tuple[str, str], float | None]) -> str:
    """Round trips between all pairs."""

    def cell(a: str, b: str) -> str:
        if a == b:
            return "."
        value = pings.get((a, b))
        return "LOST" if value is None else f"{value:.2f}"

    return table(("", *names), [(a, *(cell(a, b) for b in names)) for a in names])


def ping_line(names: Sequence[str], pings: Mapping[tuple[str, str], float | None]) -> str:
    """One line for the IPv6 matrix."""
    pairs = [(a, b) for a in names for b in names if a != b]
    times = [value for pair in pairs if (value := pings.get(pair)) is not None]
    rest = f", {min(times):.2f} to {max(times):.2f} ms" if times else ""
    return f"IPv6: {len(times)} of {len(pairs)} pairs answered{rest}"


def _times(survey: Survey) -> str:
    own = {
        phase: (f"{first:.1f} s", f"{last:.1f} s") for phase, first, last in seen.phase_times(survey.nodes)
    }
    outside = {what: f"{at_s:.1f} s" for what, at_s in survey.times}
    rows = [(what, *own.get(what, ("", "")), outside.get(what, "")) for what in {**own, **outside}]
    return table(("PHASE", "FIRST NODE", "LAST NODE", "SEEN BY THE LAB"), rows)
