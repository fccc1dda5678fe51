"""How do the columns' snapshots read in the documents of the local API?

Nothing but translation: each function takes what a column says of itself and makes the document
(`api.service`) that programs and people see. Nothing is asked, kept or decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2p_bootstrap.api.service import (
    AdmissionDoc,
    ClusterDoc,
    InviteDoc,
    NatDoc,
    PeerDoc,
    PlanDoc,
    RegionRow,
    StepDoc,
)
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.authority import Outlook
from p2p_bootstrap.node.issuing import InviteState
from p2p_bootstrap.node.outside import Outside
from p2p_bootstrap.node.places import Row
from p2p_bootstrap.node.sharing import Cluster
from p2p_network.admission.trust import SENTENCES, Cause, Verdict
from p2p_network.core.ids import PeerId
from p2p_network.dataplane.choice import UDP
from p2p_network.dataplane.messages import PeerStats
from p2p_network.membership import Member
from p2p_network.nat import Told
from p2p_network.records import RoleRecord


def cluster_docs(found: Iterable[Cluster], own_scope: str) -> list[ClusterDoc]:
    """The clusters of the mesh, this node's marked."""
    return [
        ClusterDoc(
            name=one.scope,
            cluster_id=one.cluster_id,
            servers=one.servers,
            agents=one.agents,
            ready=one.ready,
            self=one.scope == own_scope,
        )
        for one in found
    ]


def admission_doc(admission: Admission, refused: Mapping[str, int]) -> AdmissionDoc:
    """Whether this node is a member, and why. `refused`: peers turned away here, by reason."""
    kept, own, trust = admission.kept, admission.own, admission.trust
    certificate, refused_by = own.certificate, admission.refused_by
    if refused_by:
        reason = f"a peer refused this node: {SENTENCES[refused_by]}".replace(": it ", ": this node ")
    elif own.cause is Cause.UNCERTIFIED and kept.invite:
        reason = "waits for a member that redeems its join token"
    else:
        reason = own.reason.replace("it ", "this node ", 1)
    return AdmissionDoc(
        state="member" if own.is_admitted else "waiting" if kept.invite else "out",
        reason=reason,
        generation=trust.generation,
        issuer=kept.authority is not None,
        role=certificate.limit if certificate else "any",
        region=certificate.region if certificate else "",
        expires_ms=certificate.expires_ms if certificate else 0,
        refused=dict(refused),
        revoked=len(trust.known_out()),
    )


def nat_doc(outside: Outside) -> NatDoc:
    """What stands between this node and the others."""
    seen = outside.nat
    return NatDoc(
        kind=seen.kind,
        seen_as=seen.udp or seen.ip,
        observers=seen.observers,
        reachable=outside.reachable,
        reached_at=list(outside.reached),
        error=outside.why_unreached,
        reason=seen.reason,
    )


def peer_doc(
    member: Member,
    said: RoleRecord | None,
    *,
    verdict: Verdict,
    stats: PeerStats | None,
    told: Told | None,
    address: str,
    round_trip_s: float | None,
    relay: tuple[str, str],
    drained: str,
) -> PeerDoc:
    """One peer as this node sees it.

    Args:
        said: what it says of its role.
        verdict: whether it is a member.
        stats: of the data plane's session with it; None while there is none.
        told: what it said of how it is seen from outside.
        address: of its channel; "" while there is none. `round_trip_s`: over that.
        relay: the name of who relays the channel, and why; ("", "") for nobody.
        drained: until when and why it may be away; "" if it is not drained.
    """
    record = member.record
    why = stats.reason if stats else ""
    if stats and told is not None and stats.carrier == UDP and stats.endpoint == told.own_udp:
        why += f", through a hole in its NAT at {told.own_udp}"
    return PeerDoc(
        peer=member.peer,
        hostname=record.hostname if record else "",
        region=record.region if record else "",
        zone=record.zone if record else "",
        state=member.state.value,
        drained=drained,
        ipv4=member.ipv4,
        ipv6=member.ipv6,
        address=address,
        rtt_ms=to_ms(round_trip_s),
        carrier=stats.carrier if stats else "none",
        carrier_reason=why,
        carrier_rtt_ms=None if stats is None or stats.rtt_ms is None else round(stats.rtt_ms, 2),
        rx_rate_bps=stats.rx_rate_bps if stats else 0.0,
        tx_rate_bps=stats.tx_rate_bps if stats else 0.0,
        loss=None if stats is None or stats.loss is None else round(stats.loss, 5),
        relay=relay[0],
        relay_reason=relay[1],
        nat=told.kind if told is not None else "unknown",
        seen_as=(stats.seen.get("udp") or stats.seen.get("tcp", "")) if stats else "",
        keepalive_s=stats.idle_s if stats else 0.0,
        cluster=said.scope if said else "",
        role=said.role if said else "",  # type: ignore[typeddict-item]  # checked by who reads the records
        rx_bytes=stats.rx_bytes if stats else 0,
        tx_bytes=stats.tx_bytes if stats else 0,
        admission=verdict.cause or "member",
        generation=verdict.certificate.generation if verdict.certificate else 0,
        reason=member.reason,
    )


def plan_doc(outlook: Outlook) -> PlanDoc:
    """A declaration, and the steps there."""
    facts, declared = outlook.facts, outlook.declaration
    return PlanDoc(
        version=declared.version,
        by=outlook.by,
        holder=facts.name(PeerId(outlook.holder)) if outlook.holder else "",
        servers=declared.servers,
        now=sorted(facts.name(peer) for peer in facts.voters),
        forced={facts.name(peer): role for peer, role in sorted(declared.roles.items())},
        steps=[
            StepDoc(action=s.action, node=facts.name(s.peer) if s.peer else s.node, reason=s.reason)
            for s in outlook.steps
        ],
        blocked=bool(outlook.steps) and outlook.steps[-1].pending,
    )


def to_ms(value_s: float | None) -> float | None:
    """Seconds as milliseconds, for people."""
    return None if value_s is None else round(value_s * 1000, 2)


def region_row(row: Row) -> RegionRow:
    """Where one node is."""
    inferred = row.inferred
    return RegionRow(
        peer=row.peer,
        hostname=row.hostname,
        region=row.region,
        zone=row.zone,
        how=row.how,
        inferred=inferred.region if inferred else "",
        why=inferred.reason if inferred else "nothing is known of it yet",
        error=round(row.coordinate.error, 3) if row.coordinate else None,
        measured_ms=to_ms(row.measured_s),
        estimated_ms=to_ms(row.estimated_s),
        self=row.itself,
    )


def invite_doc(state: InviteState) -> InviteDoc:
    """An invitation and what became of it."""
    invitation = state.invitation
    return InviteDoc(
        id=invitation.id,
        state=state.state,
        role=invitation.limit,
        region=invitation.region,
        uses=invitation.uses,
        used_by=list(state.used_by),
        created_ms=invitation.created_ms,
        expires_ms=invitation.expires_ms,
    )
