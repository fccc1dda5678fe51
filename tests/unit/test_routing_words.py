"""Who may say which routes the mesh uses, and is a machine left as it was found?"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2p_bootstrap.node.forwarding import Forwarding, Passing, script
from p2p_bootstrap.node.policy import ACCESS_KEY, ledger_policy
from p2p_network.identity import Identity
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.policy import Refusal, rule_of

ROOT, GUEST = (Identity(hashlib.sha256(name).digest()).peer_id for name in (b"root", b"guest"))
WORDS = (f"accepted/{GUEST}", f"accepted/{ROOT}", ACCESS_KEY)
OFFERS = ("routes", "services")
VPN = (IPv4Network("10.144.0.0/16"), IPv6Network("fd77::/64"))


class Judge:
    """Both are members; one of them holds the root."""

    trust: Any = SimpleNamespace(
        certificate_of=lambda peer: (
            SimpleNamespace(is_issuer=peer == ROOT) if peer in (ROOT, GUEST) else None
        ),
        proven=lambda key, value: None,
        owns=lambda key, value: False,
    )

    def admits(self, author: str) -> bool:
        return author in (ROOT, GUEST)

    def spoke(self, author: str, wall_ms: int) -> bool:
        return True


@pytest.mark.parametrize("key", WORDS)
def test_only_a_holder_of_the_root_says_what_is_accepted_and_allowed(key: str) -> None:
    policy, rule = ledger_policy("m", lambda _key: None, Judge()), rule_of(key)
    assert rule is not None
    assert policy.refusal(rule, key, ROOT, b"x", wall_ms=1) is None
    assert policy.refusal(rule, key, ROOT, None, wall_ms=1) is None, "it may be taken back"
    for author in (GUEST, "stranger"):
        assert policy.refusal(rule, key, author, b"x", wall_ms=1) is Refusal.NOT_AUTHORITY


def test_offers_are_their_nodes_own_and_other_access_keys_are_nobodys() -> None:
    policy = ledger_policy("m", lambda _key: None, Judge())
    for name in OFFERS:
        rule = rule_of(f"{name}/{GUEST}")
        assert rule is not None
        assert policy.refusal(rule, f"{name}/{GUEST}", GUEST, b"x") is None
        assert policy.refusal(rule, f"{name}/{GUEST}", ROOT, b"x") is Refusal.NOT_OWNER
    rule = rule_of("access/other")
    assert rule is not None
    assert policy.refusal(rule, "access/other", ROOT, b"x") is Refusal.NOT_AUTHORITY


async def test_kernel_settings_are_put_back_also_after_a_crash(tmp_path: Path) -> None:
    setting = tmp_path / "sys" / "net/ipv4/conf/all/rp_filter"
    setting.parent.mkdir(parents=True)
    setting.write_text("1\n")
    durable = DurableFiles(tmp_path / "durable")

    def forwarding() -> Forwarding:
        return Forwarding(durable, settings=tmp_path / "sys")

    exit_used = Passing("kp2p0", *VPN, uses_exit=True)
    crashed = forwarding()
    await crashed.keep(exit_used)
    await crashed.keep(exit_used)
    assert setting.read_text() == "2"
    again = forwarding()
    await again.keep(exit_used)
    assert setting.read_text() == "2"
    await again.keep(Passing("kp2p0", *VPN))
    assert setting.read_text() == "1"
    setting.write_text("0")
    await forwarding().keep(Passing("kp2p0", *VPN))
    assert setting.read_text() == "0", "what others set later is left alone"


def test_the_rules_are_made_anew_as_a_whole() -> None:
    made = script(Passing("kp2p0", *VPN, carries=True))
    assert made.index("delete table inet kairos_p2p") < made.index("masquerade")
    assert "masquerade" not in script(Passing("kp2p0", *VPN))
