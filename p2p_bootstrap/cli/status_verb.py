"""``kairos-p2p status``: what is this node, and why?"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

import click

from p2p_bootstrap.api.service import AdmissionDoc, ClusterDoc, NatDoc, StatusDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import format_duration, output_option, socket_option
from p2p_network.core.ids import short

WATCH_PERIOD_S: Final = 1.0
_CLEAR: Final = "\x1b[H\x1b[2J"

Sheet = list[tuple[str, tuple[str, ...]]]


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@output_option
@socket_option
def status(watch: bool, output: out.Output, socket: Path) -> None:
    """What is this node, and why?

    Shows its name, the mesh, how it is seen from outside, the VPN, its role with the reason for it, and k3s.
    """
    client = AgentClient(socket)
    document = client.status()
    show(document, output, watch=watch)
    while watch:
        time.sleep(WATCH_PERIOD_S)
        fresh = client.status()
        if fresh != document:
            document = fresh
            show(document, output, watch=True)


def show(document: StatusDoc, output: out.Output, *, watch: bool = False) -> None:
    """Print one status. While watching, JSON takes one line and a table starts at the top of the screen."""
    match output:
        case "json" if watch:
            out.emit(json.dumps(document))
        case "yaml" if watch:
            out.emit("---\n" + out.to_yaml(document))
        case "json" | "yaml":
            out.print_document(document, output)
        case "name":
            out.emit(document["node"]["peer"])
        case "table":
            if watch and out.is_terminal():
                sys.stdout.write(_CLEAR)
            out.print_sheet(sheet(document))


def sheet(document: StatusDoc) -> Sheet:
    """The lines of a status: a label and its facts, the state first."""
    node, mesh, vpn = document["node"], document["mesh"], document["vpn"]
    role, k3s = document["role"], document["k3s"]
    place = [
        f"region {node['region']}" if node["region"] else "",
        f"zone {node['zone']}" if node["zone"] else "",
    ]
    lines: Sheet = [
        ("node", (node["hostname"], *place, f"peer {short(node['peer'])}")),
        (
            "mesh",
            (mesh["state"], _company(document), f"mesh {mesh['mesh_id']}", f"network {mesh['network_id']}"),
        ),
        ("member", _admission(document["admission"])),
        *([("nat", _nat(document["nat"]))] if "nat" in document and document["nat"]["observers"] else []),
        ("vpn", (vpn["state"], vpn["ipv4"], vpn["ipv6"], _device(document))),
        (
            "role",
            (role["role"] or out.NOTHING, role["state"], f"epoch {role['epoch']}" if role["epoch"] else ""),
        ),
    ]
    if document["names"]["state"] != "off":
        lines.insert(
            len(lines) - 2, ("names", (document["names"]["state"], f"NODE.{document['names']['origin']}"))
        )
    if role["cluster_id"]:
        lines.append(("cluster", (role["cluster_id"],)))
    lines += [("also", (_other(cluster),)) for cluster in document.get("clusters", ()) if not cluster["self"]]
    ready = "ready" if role["ready"] else ""
    lines.append(("k3s", (k3s["state"], k3s["version"], f"pid {k3s['pid']}" if k3s["pid"] else "", ready)))
    if document["phases"]:
        reached = (f"{phase['name']} {format_duration(phase['at_s'])}" for phase in document["phases"])
        lines.append(("reached", (", ".join(reached) + " after the start",)))
    if role["reason"]:
        lines.append(("why", (role["reason"],)))
    if document.get("drained"):
        lines.append(("drained", (document["drained"],)))
    # what is wrong comes last, where the eye rests
    lines += [("error", (f"{where}: {text}",)) for where, text in problems(document)]
    return lines


def problems(document: StatusDoc) -> list[tuple[str, str]]:
    """What has failed on this node: where, and the words of the failure."""
    parts = (
        ("vpn", document["vpn"]["error"]),
        ("names", document["names"]["error"]),
        ("k3s", document["k3s"]["error"]),
    )
    return [(where, text) for where, text in parts if text]


def _other(cluster: ClusterDoc) -> str:
    nodes = cluster["servers"] + cluster["agents"]
    return (
        f"cluster {cluster['name']} on this mesh: {cluster['ready']} of {nodes} nodes ready, "
        f"servers {cluster['servers']}"
    )


def _admission(admission: AdmissionDoc) -> tuple[str, ...]:
    confined = " in ".join(
        part
        for part in (
            admission["role"] if admission["role"] != "any" else "",
            admission["region"] and f"region {admission['region']}",
        )
        if part
    )
    refused = sum(admission["refused"].values())
    return (
        "yes" if admission["state"] == "member" else f"{admission['state']}: {admission['reason']}",
        f"keys of generation {admission['generation']}",
        "holds the root" if admission["issuer"] else "",
        f"only {confined}" if confined else "",
        f"{refused} refused" if refused else "",
    )


def _nat(nat: NatDoc) -> tuple[str, ...]:
    reached = {True: "members can dial it", False: f"no member can dial it: {nat['error']}", None: ""}
    return (
        nat["kind"],
        f"seen as {nat['seen_as']}" if nat["seen_as"] else "",
        reached[nat["reachable"]],
        nat["reason"],
    )


def _company(document: StatusDoc) -> str:
    mesh = document["mesh"]
    if not mesh["known"]:
        return "no other node seen yet"
    return f"{mesh['peers']} of {mesh['known']} known peers connected"


def _device(document: StatusDoc) -> str:
    vpn = document["vpn"]
    if vpn["state"] == "userspace":
        return f"{vpn.get('reason', '')}; reach the mesh with: kairos-p2p socks"
    return f"{vpn['device']}, MTU {vpn['mtu']}" if vpn["device"] and vpn["state"] == "up" else ""
