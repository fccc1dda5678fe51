"""Can programs on one machine reach another by its name, and is nothing left behind?"""

from __future__ import annotations

from collections.abc import Callable

from clusters import statuses

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
PATIENCE_S = 60.0
DNS = {"p2p": {"dns": True, "auto": {"enable": False}}}


def test_nodes_are_reached_by_name_until_the_agent_ends(lab: LabFactory) -> None:
    mine = lab(make_topology({"east": ("n1",), "west": ("n2",)}, config=DNS), agents=True)
    node = mine.node("n1")

    def resolves(name: str, expected: str) -> bool:
        return expected in node.exec(["getent", "ahosts", name]).stdout

    def up(name: str) -> bool:
        status = statuses(mine, (name,)).get(name)
        return status is not None and status["names"]["state"] == "up"

    before = node.exec(["cat", "/etc/resolv.conf"]).stdout
    mine.wait(lambda: up("n1") and up("n2"), PATIENCE_S, "names to be answered")
    formed = statuses(mine)
    theirs = formed["n2"]["vpn"]
    origin = formed["n1"]["names"]["origin"]
    assert origin == f"{formed['n1']['mesh']['network_id']}.p2p"
    mine.wait(lambda: resolves(f"n2.{origin}", theirs["ipv4"]), PATIENCE_S, "the VPN address by name")
    assert resolves(f"n2.{origin}", theirs["ipv6"])
    assert f"n2.{origin}" in node.exec(["getent", "hosts", theirs["ipv4"]]).stdout
    assert node.exec(["ping", "-c1", "-W5", f"n2.{origin}"]).returncode == 0
    assert node.exec(["getent", "hosts", f"nobody.{origin}"]).returncode != 0

    mine.kill("n1", "agent")
    assert "kairos-p2p" in node.exec(["cat", "/etc/resolv.conf"]).stdout, "a crash leaves our lines"
    mine.wait(lambda: up("n1") and resolves(f"n2.{origin}", theirs["ipv4"]), PATIENCE_S, "n1 to be back")
    assert node.exec([*kairos_p2p(), "leave", "--yes"]).returncode == 0
    mine.wait(
        lambda: node.exec(["cat", "/etc/resolv.conf"]).stdout == before, PATIENCE_S, "the file to be put back"
    )
