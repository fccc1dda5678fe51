"""What does a node find on its disk, in its environment and of the host's programs?

Disks are folders of the lab; everything on them survives a power cut. The programs are those of the
environment that this process runs in, wherever it lies.
"""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

import p2p_bootstrap
import p2p_network
import p2p_roles
import p2p_simulations
from p2p_network.core.ids import stable_hash
from p2p_roles.k3s.supervisor import CHOICE
from p2p_simulations.lab.topology import Place, Topology

DISKS: Final = (
    "/etc/kairos-p2p",
    "/etc/rancher",
    "/oem",
    "/var/lib/cni",
    "/var/lib/kairos-p2p",
    "/var/lib/kubelet",
    "/var/lib/rancher",
)


def file_system(folder: Path, topology: Topology, place: Place, token: str) -> dict[str, Any]:
    """Make the node's disks in `folder`; what the holder mounts, and the files that only this node has."""
    disks = {path: folder / "disk" / path.strip("/").replace("/", "-") for path in DISKS}
    root = folder / "root"
    for path in (root, *disks.values()):
        path.mkdir(parents=True, exist_ok=True)
    config = disks["/oem"] / "90_custom.yaml"
    if not config.exists():  # a node that is booted again keeps its own
        with open(os.open(config, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(cloud_config(topology, place, token))
    hosts = "".join(f"{p.ipv4} {p.name}\n{p.ipv6} {p.name}\n" for p in topology.places)
    machine_id = f"{stable_hash(token, place.name, 'machine-id'):016x}" * 2
    return {
        "root": str(root),
        "disks": {path: str(source) for path, source in disks.items()},
        "files": {
            "/etc/hostname": f"{place.name}\n",
            "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{hosts}",
            "/etc/machine-id": f"{machine_id}\n",
            "/etc/resolv.conf": "# the lab has no name server\n",
        },
    }


def cloud_config(topology: Topology, place: Place, token: str) -> str:
    """The cloud-config that a node of the lab boots from."""
    p2p: dict[str, Any] = {
        "network_token": token,
        "public_dht": False,  # a lab has no way to the Internet
        "region": place.region,
        "minimum_nodes": topology.minimum_nodes,
    }
    if topology.servers > 1:
        p2p["auto"] = {"ha": {"master_nodes": topology.servers - 1}}  # in addition to the first one
    document = merge(merge({"hostname": place.name, "p2p": p2p}, topology.config), place.config)
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into `base`, mappings key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def environment(folder: Path, extra: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The environment of everything that runs on a node."""
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    terminal = os.environ.get("TERM", "dumb")
    env = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TERM": terminal, "K3S_BIN": k3s_binary(folder)}
    env[CHOICE] = "child"  # whatever this machine's service manager is, a node of a lab leaves it alone
    return env | dict(extra)


def k3s_binary(folder: Path) -> str:
    """The operator's own k3s (K3S_BIN, or on PATH), else the stand-in."""
    own = os.environ.get("K3S_BIN") or shutil.which("k3s")
    if own:
        return str(Path(own).absolute())
    script = Path(sys.executable).parent / "k3s-simulated"
    return str(script if script.exists() else folder / "bin" / "k3s-simulated")


def write_k3s(folder: Path) -> None:
    """The stand-in as one executable, for an environment without its console script."""
    path = folder / "bin" / "k3s-simulated"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m p2p_simulations.k3s "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _packages() -> list[Path]:
    rooms = (p2p_bootstrap, p2p_network, p2p_roles, p2p_simulations)
    return [Path(room.__path__[0]).resolve() for room in rooms]


def visible(folder: Path, env: Mapping[str, str]) -> list[str]:
    """Folders and files that nodes need to see, wherever they lie."""
    sources = [package.parent for package in _packages()]
    paths = [Path(sys.prefix), Path(sys.base_prefix), *sources, folder / "bin", Path(env["K3S_BIN"])]
    found = {path for path in paths if path.exists()}
    return sorted(str(path) for path in found if not found & set(path.parents))


def compile_packages() -> None:
    """Byte code of our packages, once, so that not every node does it for itself on its read-only disk."""
    for package in _packages():
        compileall.compile_dir(package, quiet=2, workers=1)
