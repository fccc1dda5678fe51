"""Which carrier is used: the way through the mesh is the last resort, whatever else is known of it."""

from __future__ import annotations

from p2p_network.dataplane.choice import MESH, TCP, UDP, Path, choose, has_grown, needs_bbr


def test_the_mesh_carries_only_what_nothing_else_does() -> None:
    mesh = Path(MESH, loss=0.0, rtt_ms=0.1)
    kind, reason = choose([mesh], "")
    assert (kind, reason) == (MESH, "neither TCP nor UDP reaches it: packets go through the mesh")
    for direct in (Path(TCP, "bbr", 0.3, 900.0), Path(UDP, loss=0.3, rtt_ms=900.0)):
        kind, reason = choose([mesh, direct], MESH)
        assert (kind, reason) == (direct.kind, f"only {direct.kind.upper()} reaches it")
    kind, reason = choose([mesh, Path(TCP, "bbr"), Path(UDP)], MESH)
    assert kind == TCP


def test_what_says_nothing_carries_nothing_while_another_way_answers() -> None:
    tcp, udp, mesh = Path(TCP, "bbr", silent=True), Path(UDP), Path(MESH)
    assert choose([tcp, udp, mesh], TCP) == (UDP, "only UDP reaches it")
    assert choose([tcp, Path(UDP, silent=True), mesh], TCP)[0] == MESH
    assert choose([tcp], TCP)[0] == TCP, "better than nothing"
    assert choose([tcp, Path(UDP, silent=True)], TCP)[0] == TCP


def test_only_a_near_way_without_loss_does_without_bbr() -> None:
    assert not needs_bbr(0.2, sent=0, again=0)
    assert not needs_bbr(0.2, sent=1_000_000, again=100), "now and then a queue runs over"
    assert needs_bbr(0.2, sent=10_000, again=9)
    assert needs_bbr(20.0, sent=0, again=0)
    assert has_grown(0.2, 100.0), "it was near"
    assert not has_grown(0.2, 9.0), "a queue"
    assert not has_grown(90.0, 100.0), "it was always long"
