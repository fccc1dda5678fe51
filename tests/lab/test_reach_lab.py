"""Are networks behind a node reached, forged sources dropped, access rules kept, other meshes kept out?"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import ask, statuses

import p2p_bootstrap
from p2p_simulations.lab import processes
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.topology import make_topology

pytestmark = pytest.mark.timeout(600)

LabFactory = Callable[..., Lab]
PATIENCE_S = 60.0
ONLY_VPN = {"p2p": {"auto": {"enable": False}}}
BEHIND = "10.77.0.5"
LAN = "10.77.0.0/24"
PUBLIC = "198.51.100.7"
BEHIND6 = "fdbe:77::5"
LAN6 = "fdbe:77::/64"
PUBLIC6 = "2001:db8:77::7"
KERNEL = ("ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv6/conf/all/forwarding")
STRANGER = {"p2p": {"network_id": "other"}}


HASTY = "/root/hasty"
REKEY = ("REKEY_AFTER_S = 3600.0", "REKEY_AFTER_S = 8.0")


def make_hasty(node: Node) -> None:
    """Its agent replaces keys every few seconds instead of every hour."""
    source = Path(p2p_bootstrap.__file__).parent
    vpn = f"{HASTY}/p2p_bootstrap/node/vpn.py"
    change = f"s/^{REKEY[0]}$/{REKEY[1]}/"
    script = (
        f"mkdir {HASTY} && cp -r {source} {HASTY}/ && sed -i '{change}' {vpn} && grep -q '{REKEY[1]}' {vpn}"
    )
    done = node.exec(["sh", "-c", script])
    assert done.returncode == 0, done.stderr


def told(node: Node, *verb: str) -> str:
    done = node.exec([*kairos_p2p(), *verb], 60)
    assert done.returncode == 0, f"{' '.join(verb)} on {node.name}: {done.stderr}"
    return done.stdout


def reaches(node: Node, address: str, *more: str) -> bool:
    return node.exec(["ping", "-c1", "-W1", *more, address]).returncode == 0


def in_router(lab: Lab, *argv: str, stdin: str = "") -> None:
    (router,) = [h.pid for h in processes.holders(lab.folder) if h.place == processes.ROUTER]
    subprocess.run(["nsenter", "-t", str(router), "-n", *argv], input=stdin, text=True, check=True)


def test_routes_exit_access_and_other_networks(lab: LabFactory) -> None:
    mine = lab(
        make_topology({"east": ("n1",), "west": ("n2", "n3")}, config=ONLY_VPN, nodes={"n3": STRANGER}),
        env={"PYTHONPATH": HASTY},
    )
    one, two = mine.node("n1"), mine.node("n2")
    for name in mine.nodes:
        make_hasty(mine.node(name))
        mine.start_agent(name)
    # the router stands for a machine behind n2, and for one in the internet: n1 gets there by the mesh only
    for address in (f"{BEHIND}/32", f"{PUBLIC}/32", f"{BEHIND6}/128", f"{PUBLIC6}/128"):
        in_router(mine, "ip", "address", "add", address, "dev", "lo")
    cut = f"ip saddr {one.place.ipv4} ip daddr {{ {BEHIND}, {PUBLIC} }} drop"
    cut += f"\nip6 saddr {one.place.ipv6} ip6 daddr {{ {BEHIND6}, {PUBLIC6} }} drop"
    chain = "type filter hook input priority 0; policy accept;"
    in_router(mine, "nft", "-f", "-", stdin=f"table inet t {{\nchain input {{\n{chain}\n{cut}\n}}\n}}\n")

    def address_of(name: str) -> str:
        status = statuses(mine, (name,)).get(name)
        return status["vpn"]["ipv4"] if status is not None and status["vpn"]["state"] == "up" else ""

    mine.wait(lambda: address_of("n1") and address_of("n2"), PATIENCE_S, "the VPN")
    vpn1, vpn2 = address_of("n1"), address_of("n2")
    mine.wait(lambda: reaches(one, vpn2), PATIENCE_S, "n1 to reach n2")
    first_session = one.exec(["python3", "-c", SESSIONS]).stdout
    settings = ["cat", *(f"/proc/sys/net/{name}" for name in KERNEL)]
    before = two.exec(settings).stdout

    # subnets: offered, accepted, reached; the machine behind sees n2's own address
    assert not reaches(one, BEHIND)
    assert not reaches(one, BEHIND6)
    told(two, "routes", "advertise", LAN, LAN6, "--exit")
    mine.wait(lambda: LAN in told(one, "routes", "-o", "name"), PATIENCE_S, "the offer")
    assert {row["state"] for row in ask(mine, "n1", "routes")} == {"offered"}
    told(one, "routes", "accept", "n2", LAN, LAN6)
    for behind in (BEHIND, BEHIND6):
        mine.wait(lambda to=behind: reaches(one, to), PATIENCE_S, "the subnet behind n2")
    assert "10.77.0.0/24 dev kp2p0" in one.exec(["ip", "route"]).stdout

    # a source that is n2's to speak for is not n1's: dropped and counted by n2
    def spoofed() -> int:
        stats = two.exec(["python3", "-c", DROPS])
        return int(stats.stdout or 0)

    forged = spoofed()
    one.exec(["ip", "address", "add", "10.77.0.9/32", "dev", "lo"])
    assert not reaches(one, vpn2, "-I", "10.77.0.9")
    mine.wait(lambda: spoofed() > forged, PATIENCE_S, "a forged source of a routed subnet to be counted")

    # exit: everything public goes through n2; the mesh's own connections do not
    for public in (PUBLIC, PUBLIC6):
        assert not reaches(one, public)
    told(one, "routes", "accept", "n2", "exit")
    mine.wait(
        lambda: any(r["state"] == "available" for r in ask(mine, "n1", "routes")), PATIENCE_S, "an exit"
    )
    told(one, "routes", "exit", "n2")
    for public in (PUBLIC, PUBLIC6):
        mine.wait(lambda to=public: reaches(one, to), PATIENCE_S, f"the internet through n2: {public}")
    mine.wait(lambda: reaches(one, vpn2), PATIENCE_S, "the VPN beside the exit")
    mine.wait(lambda: reaches(one, two.place.ipv4), PATIENCE_S, "what has a route of its own")
    assert "masquerade" in two.exec(["nft", "list", "table", "inet", "kairos_p2p"]).stdout
    # an agent that crashes leaves all of it in force, and the next one knows what it is
    mine.kill("n1", "agent")
    mine.wait(
        lambda: not reaches(one, PUBLIC) or statuses(mine, ("n1",)), PATIENCE_S, "n1's agent to be back"
    )
    assert reaches(one, PUBLIC, "-W5")
    assert reaches(one, PUBLIC6, "-W5")
    mine.wait(lambda: statuses(mine, ("n1",)), PATIENCE_S, "n1's agent to answer")
    told(one, "routes", "exit", "--none")
    mine.wait(lambda: "4702" not in one.exec(["ip", "rule"]).stdout, PATIENCE_S, "the rules to go")

    # access: about who begins; enforced by the receiver, counted, and the way back stays open
    assert two.exec([*kairos_p2p(), "access", "deny", "any", "any"]).returncode == 0, "n2 has the token too"
    mine.wait(lambda: "deny any to any" in told(one, "access", "-o", "name"), PATIENCE_S, "n2's rule")
    told(one, "access", "remove", "1")
    told(one, "access", "deny", "region:east", "node:n2")
    mine.wait(lambda: not reaches(one, vpn2), PATIENCE_S, "n2 to refuse n1")
    mine.wait(lambda: reaches(two, vpn1), PATIENCE_S, "n2, which may begin, to get its answers")
    (row,) = ask(mine, "n2", "access")["inbound"]
    assert (row["hostname"], row["allowed"], row["rule"]) == ("n1", False, "deny region:east to node:n2")
    mine.wait(lambda: ask(mine, "n2", "access")["inbound"][0]["dropped"], PATIENCE_S, "the count")
    told(one, "access", "clear")
    mine.wait(lambda: reaches(one, vpn2), PATIENCE_S, "n1 to be let in again")

    # another network id on the same token is another mesh
    stranger = mine.wait(lambda: statuses(mine, ("n3",)), PATIENCE_S, "n3 to answer")["n3"]
    assert stranger["mesh"]["state"] == "alone"
    assert {peer["hostname"] for peer in ask(mine, "n1", "peers")} == {"n2"}

    # all of that went on while the sessions' keys were replaced by the clock
    assert len(first_session.split()) == 1
    mine.wait(
        lambda: one.exec(["python3", "-c", SESSIONS]).stdout not in ("", first_session),
        PATIENCE_S,
        "new keys",
    )

    # all of it is put back when the node leaves
    told(two, "leave", "--yes")
    assert two.exec(settings).stdout == before
    assert two.exec(["nft", "list", "table", "inet", "kairos_p2p"]).returncode != 0
    mine.wait(lambda: "10.77.0.0" not in one.exec(["ip", "route"]).stdout, PATIENCE_S, "the route to go")


STATS = """
import trio
from pathlib import Path
from p2p_network.dataplane.client import DataPlane

async def main():
    plane = DataPlane(Path("/run/kairos-p2p/dataplane.sock"))
    stats = await plane.stats()
    print(WHAT)

trio.run(main)
"""
DROPS = STATS.replace("WHAT", "sum(peer.drops.get('spoofed', 0) for peer in stats.peers)")
SESSIONS = STATS.replace("WHAT", "*[peer.session_id.hex() for peer in stats.peers if peer.connected]")
