"""What a listener on the local network can learn from an announcement: nothing, unless it is a member."""

from __future__ import annotations

import pytest

from p2p_network.core.ids import peer_id_of
from p2p_network.host.discovery import DHT_KEY_S, derived, dht_keys, seal, service_type, unseal

KEY, OTHER = b"r" * 32, b"s" * 32
PEER = peer_id_of(b"k" * 32)
WHERE = ("/ip4/10.0.0.5/tcp/4701", "/ip6/fd00::5/tcp/4701")
SEALED = seal(KEY, PEER, WHERE, bytes(12))


def test_members_read_what_members_seal() -> None:
    assert unseal(KEY, SEALED) == (PEER, WHERE)


@pytest.mark.parametrize(
    ("key", "sealed"),
    [
        (OTHER, SEALED),
        (KEY, SEALED[:-1]),
        (KEY, SEALED[:-1] + b"?"),
        (KEY, b""),
        (KEY, b"x" * 11),
        (KEY, bytes(200)),
    ],
)
def test_everything_else_is_refused(key: bytes, sealed: bytes) -> None:
    with pytest.raises(ValueError, match="nobody of this mesh"):
        unseal(key, sealed)


def test_a_sealed_lie_about_the_peer_is_refused() -> None:
    with pytest.raises(ValueError, match="peer id"):
        unseal(KEY, seal(KEY, "not a peer", WHERE, bytes(12)))  # type: ignore[arg-type]


def test_nothing_of_the_node_is_visible() -> None:
    assert PEER.encode() not in SEALED
    assert b"10.0.0.5" not in SEALED
    assert KEY.hex()[:8] not in service_type(KEY)


def test_the_service_type_is_one_that_mdns_accepts_and_names_the_mesh() -> None:
    from zeroconf import service_type_name

    assert service_type_name(service_type(KEY)) == service_type(KEY)
    assert service_type(KEY) == service_type(KEY) != service_type(OTHER)


def test_each_use_has_its_own_value() -> None:
    assert len({derived(KEY, use) for use in ("mdns-type", "mdns-seal", "dht-key")}) == 3


def test_the_dht_keys_change_every_day_and_clocks_may_differ_by_one() -> None:
    noon = 1_800_000_000.0 // DHT_KEY_S * DHT_KEY_S + DHT_KEY_S / 2
    now, previous, following = dht_keys(KEY, noon)
    assert len({now, previous, following}) == 3
    assert dht_keys(KEY, noon + 3600)[0] == now
    for clock in (noon - DHT_KEY_S, noon + DHT_KEY_S):
        assert now in dht_keys(KEY, clock)  # it looks where we are,
        assert dht_keys(KEY, clock)[0] in (previous, following)  # and we where it is
    assert now not in dht_keys(KEY, noon + 3 * DHT_KEY_S)
    assert now not in dht_keys(b"another".ljust(32), noon)
    assert now[:2] == b"\x12\x20"
    assert len(now) == 34
