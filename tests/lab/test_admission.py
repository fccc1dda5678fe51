"""Who is in and who is out of a real mesh, while packets flow: join tokens, revocation, rotation.

One lab, since each part builds on the one before: three nodes with the network token form a cluster, a fourth
comes by a join token, loses it, the keys are rotated under traffic while one node is away, one is put out.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import yaml
from clusters import ask, facts_for_ever, statuses, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import CLOUD_CONFIG, Node, kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
PATIENCE_S = 90.0


def run(node: Node, *verb: str) -> subprocess.CompletedProcess[str]:
    return node.exec([*kairos_p2p(), *verb], 60)


def told(node: Node, *verb: str) -> str:
    done = run(node, *verb)
    assert done.returncode == 0, f"{' '.join(verb)} on {node.name}: {done.stderr}"
    return done.stdout.strip()


def edit_config(node: Node, change: Callable[[dict[str, Any]], None]) -> None:
    """Another cloud-config, which the agent reads when it starts again."""
    text = node.exec(["cat", CLOUD_CONFIG]).stdout
    document = yaml.safe_load(text)
    change(document["p2p"])
    header = "#cloud-config\n"
    done = node.exec(["tee", CLOUD_CONFIG], stdin=header + yaml.safe_dump(document))
    assert done.returncode == 0, done.stderr


def peers_of(lab: Lab, name: str, key: str = "hostname") -> dict[str, dict[str, Any]]:
    if lab.node(name).observe() is None:
        return {}
    return {peer[key]: peer for peer in ask(lab, name, "peers")}


def by_id(lab: Lab, name: str) -> dict[str, dict[str, Any]]:
    return peers_of(lab, name, key="peer")


def admission(lab: Lab, name: str) -> dict[str, Any]:
    seen = lab.node(name).observe()
    return (
        dict(seen["admission"]) if seen is not None else {"generation": 0, "state": "silent", "refused": {}}
    )


def lost(ping_output: str) -> int:
    found = re.search(r"(\d+) packets transmitted, (\d+) received", ping_output)
    assert found is not None, ping_output
    return int(found[1]) - int(found[2])


def test_join_rotate_and_revoke_while_packets_flow(lab: LabFactory) -> None:
    mine = lab(
        make_topology({"east": ("n1", "n2"), "west": ("n3", "n4", "n5")}, servers=1, minimum_nodes=3),
        agents=False,
    )
    network_token = yaml.safe_load(mine.node("n1").exec(["cat", CLOUD_CONFIG]).stdout)["p2p"]["network_token"]
    for name in ("n1", "n2", "n3"):
        mine.start_agent(name)
    wait_ready(mine, ("n1", "n2", "n3"))

    # ---- a join token: one use, agents only
    token = told(mine.node("n1"), "token", "invite", "--role", "agent", "--ttl", "30m", "--uses", "1")
    assert len(token) < 400

    def with_join_token(p2p: dict[str, Any]) -> None:
        del p2p["network_token"]
        p2p["join_token"] = token
        p2p["role"] = "server"  # what its operator wishes does not count beyond the certificate

    for name in ("n4", "n5"):
        edit_config(mine.node(name), with_join_token)
    # the introducer of a joining node need not hold the root: n2 passes it on
    mine.start_agent("n4")
    four = wait_ready(mine, ("n1", "n2", "n3", "n4"), PATIENCE_S)
    assert four["n4"]["role"]["role"] == "agent", "the certificate's limit binds"
    own = admission(mine, "n4")
    assert (own["state"], own["role"], own["issuer"]) == ("member", "agent", False)
    refused = run(mine.node("n4"), "token", "invite")
    assert refused.returncode == 5, "it can't admit others"
    assert run(mine.node("n4"), "token", "rotate", "--yes").returncode == 5
    (invite,) = ask(mine, "n2", "token", "invites")
    assert (invite["state"], len(invite["used_by"])) == ("used up", 1)
    # an agent has no server's token anywhere on its disk
    secret = (
        mine.node("n1").exec(["sh", "-c", "cat /var/lib/rancher/k3s/server/token 2>/dev/null"]).stdout.strip()
    )
    holders = [name for name in ("n1", "n2", "n3") if four[name]["role"]["role"] == "server"]
    password = next(
        line.split("::server:")[1]
        for name in holders
        for line in mine.node(name)
        .exec(["grep", "-rhao", "K10[0-9a-f]*::server:[0-9a-f]*", "/var/lib/kairos-p2p", "/etc/rancher"])
        .stdout.splitlines()
    )
    found = mine.node("n4").exec(
        ["grep", "-rla", password, "/var/lib", "/etc/rancher", "/etc/systemd", "/run"]
    )
    assert found.stdout == "", f"the server's password on an agent: {found.stdout}"
    assert secret is not None

    # ---- used up: the next one gets nothing, quickly, and is counted
    mine.start_agent("n5")
    mine.wait(
        lambda: any(admission(mine, n)["refused"].get("not_invited") for n in ("n1", "n2", "n3")),
        PATIENCE_S,
        "the second user of the join token to be refused",
    )
    assert "n5" not in peers_of(mine, "n1")
    assert admission(mine, "n5")["state"] == "waiting"

    # ---- no token needed any more: it is taken out, and the node starts from its disk
    def without_token(p2p: dict[str, Any]) -> None:
        p2p.pop("join_token", None)
        p2p.pop("network_token", None)

    edit_config(mine.node("n4"), without_token)
    before = facts_for_ever(statuses(mine, ("n1", "n2", "n3", "n4")))
    mine.kill("n4", "agent")
    mine.wait(lambda: admission(mine, "n4")["state"] == "member", PATIENCE_S, "n4 to be back without a token")
    wait_ready(mine, ("n1", "n2", "n3", "n4"), PATIENCE_S)

    # ---- rotation under traffic; n3 is away meanwhile
    mine.kill("n3", "node")
    mine.wait(lambda: peers_of(mine, "n1")["n3"]["state"] == "dead", PATIENCE_S, "n3 to be seen as gone")
    ping = ["ping", "-i", "0.05", "-c", "200", "-W", "2", four["n4"]["vpn"]["ipv4"]]
    with subprocess.Popen(mine.node("n1").enter_argv(ping), stdout=subprocess.PIPE, text=True) as pinging:
        new_token = told(mine.node("n1"), "token", "rotate", "--yes")
        mine.wait(
            lambda: all(admission(mine, name)["generation"] == 2 for name in ("n1", "n2", "n4")),
            PATIENCE_S,
            "all members to have the new keys",
        )
        out, _ = pinging.communicate(timeout=60)
    assert lost(out) <= 2, f"a rekey may cost a packet or two: {out[-400:]}"
    assert new_token.startswith("kp2p1_")
    assert new_token != network_token
    mine.boot("n3")
    after = wait_ready(mine, ("n1", "n2", "n3", "n4"), PATIENCE_S)
    assert facts_for_ever(after) == before, "identities, addresses and roles outlive the rotation"
    mine.wait(
        lambda: admission(mine, "n3")["generation"] == 2, PATIENCE_S, "n3, who was away, to have them too"
    )
    assert admission(mine, "n3")["issuer"]

    # ---- the old network token leaks: a machine with it is a stranger now
    def with_old_token(p2p: dict[str, Any]) -> None:
        p2p.pop("join_token", None)
        p2p["network_token"] = network_token

    edit_config(mine.node("n5"), with_old_token)
    mine.node("n5").exec(["sh", "-c", "rm -rf /var/lib/kairos-p2p"])
    mine.kill("n5", "agent")
    mine.wait(
        lambda: any(admission(mine, n)["refused"].get("outdated") for n in ("n1", "n2", "n3")),
        PATIENCE_S,
        "the holder of the old token to be refused",
    )
    assert "n5" not in peers_of(mine, "n1")

    # ---- put out: n2, under traffic between two others, while n3 is away again
    mine.kill("n3", "node")
    with subprocess.Popen(mine.node("n1").enter_argv(ping), stdout=subprocess.PIPE, text=True) as pinging:
        told(mine.node("n1"), "peer", "revoke", "n2", "--reason", "stolen", "--yes")
        mine.wait(
            lambda: (
                peers_of(mine, "n4").get("n2", {"state": "left"})["state"] == "left"
                and mine.node("n4").exec(["ping", "-c1", "-W1", after["n2"]["vpn"]["ipv4"]]).returncode != 0
            ),
            PATIENCE_S,
            "n4 to drop n2",
        )
        out, _ = pinging.communicate(timeout=60)
    assert lost(out) <= 2, out[-400:]
    assert "n2" not in {row["hostname"] for row in ask(mine, "n1", "roles", "list")}
    mine.boot("n3")  # it learns on its return; n2 goes on dialling all the while
    gone = after["n2"]["node"]["peer"]
    mine.wait(
        lambda: by_id(mine, "n3").get(gone, {}).get("admission") == "revoked",
        PATIENCE_S,
        "n3, who was away, to know of the revocation",
    )
    assert by_id(mine, "n3")[gone]["carrier"] == "none"
    mine.wait(lambda: admission(mine, "n2")["state"] == "out", PATIENCE_S, "n2 to be told that it is out")
    assert "revoked" in json.dumps(admission(mine, "n2"))
