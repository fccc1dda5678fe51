"""How does a lab come up, change and go?

`Lab.create` writes down what is meant, `up` starts one holder per node and one for the router and joins them,
`down` kills the holders (everything else goes with them, see holder.py) and removes the folder. Every method
works on a lab that another process made (`Lab.attach`).

A *bound* lab dies with the process that made it, even by kill -9: the holders hold the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from p2p_network.core.errors import UsageError
from p2p_network.token import NetworkToken, format_token
from p2p_simulations.lab import machines, outfit, processes, state
from p2p_simulations.lab.commands import LabError, require
from p2p_simulations.lab.network import Network
from p2p_simulations.lab.node import Node, agent_argv, wait_until
from p2p_simulations.lab.topology import NAT_KINDS, Place, Topology, check_groups, check_nat

T = TypeVar("T")

READY_TIMEOUT_S: Final = 20.0
_HOLDER: Final = str(Path(__file__).with_name("holder.py"))


class Lab:
    """A set of nodes and the network between them. Make one with `create` or `attach`."""

    def __init__(self, folder: Path, meant: state.State, *, bound: bool = False) -> None:
        self.folder = folder
        self.name = meant.name
        self._meant = meant
        self._bound = bound
        self._bonds: list[int] = []
        self.nodes = {
            place.name: Node(folder, place, self._environment(place.name)) for place in self.topology.places
        }

    @classmethod
    def create(
        cls,
        topology: Topology,
        name: str,
        *,
        root: Path | None = None,
        env: Mapping[str, str] | None = None,
        bound: bool = False,
    ) -> Lab:
        """Write down a new lab; nothing runs yet.

        Args:
            root: the folder of all labs, default `state.lab_root`.
            env: added to the environment of every node.
            bound: the lab's processes shall die with this process.

        Raises:
            NotPermitted, LabError, UsageError: it cannot be made here, or the name is taken or bad.
        """
        require()
        machines.require(clocks=bool(topology.clocks), slow_disks=bool(topology.slow_disks))
        token = NetworkToken(
            os.urandom(32), topology.bootstrap(), topology.discovery.dht, topology.discovery.mdns
        )
        meant = state.State(name, topology, format_token(token), tuple(sorted((env or {}).items())))
        return cls(state.create(root or state.lab_root(), meant), meant, bound=bound)

    @classmethod
    def attach(cls, name: str | None = None, *, root: Path | None = None) -> Lab:
        """A lab made by another process; `name` may be left out if there is exactly one."""
        require()
        root = root or state.lab_root()
        if name is None:
            found = [folder.name for folder in state.folders(root)]
            if not found:
                raise LabError("there is no lab", hint="start one with: kairos-p2p lab up")
            if len(found) > 1:
                raise UsageError(f"there are {len(found)} labs", hint=f"choose: --name {'|'.join(found)}")
            name = found[0]
        folder = root / name
        return cls(folder, state.read(folder))

    @property
    def topology(self) -> Topology:
        """What the lab was made from."""
        return self._meant.topology

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The partition in force, () if none."""
        return self._meant.groups

    def node(self, name: str) -> Node:
        """A node by its name. Raises UsageError that names the nearest one."""
        return self.nodes[self.topology.place(name).name]

    def up(self, *, agents: bool = True) -> None:
        """Start all nodes and join them; `agents`: start their agents too."""
        outfit.compile_packages()
        outfit.write_k3s(self.folder)
        starting = {processes.ROUTER: self._start_holder(None)}
        for place in self.topology.places:
            starting[place.name] = self._start_holder(place)
        for name, process in starting.items():
            self._wait_ready(name, process)
        pids = {found.place: found.pid for found in processes.holders(self.folder)}
        missing = starting.keys() - pids.keys()
        if missing:
            raise LabError(f"died while the lab came up: {', '.join(sorted(missing))}", hint=self._hint)
        Network(self.topology, pids[processes.ROUTER]).build(pids)
        if agents:
            for node in self.nodes.values():
                self.start_agent(node.name)

    def down(self) -> None:
        """Kill everything and remove the lab's folder. Idempotent."""
        _destroy(self.folder)
        for bond in self._bonds:
            os.close(bond)
        self._bonds.clear()

    def release(self) -> None:
        """Let a bound lab outlive this process."""
        for bond in self._bonds:
            with contextlib.suppress(BrokenPipeError):
                os.write(bond, b"k")
            os.close(bond)
        self._bonds.clear()
        self._bound = False

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def start_agent(self, name: str) -> None:
        """Start a node's agent, now and at every boot."""
        self.node(name).start_agent()
        self._remember(self._meant.with_agent(name, True))

    def kill(self, name: str, what: str) -> None:
        """kill -9 the agent, dataplane or k3s of a node, or cut its power ("node")."""
        node = self.node(name)
        if what not in ("agent", "dataplane", "k3s", "node"):
            raise UsageError(f"{what!r} cannot be killed", hint="agent, dataplane, k3s or node")
        node.kill(what)  # type: ignore[arg-type]  # checked above
        if what == "node":
            self._network().unplug(node.place)

    def boot(self, name: str) -> None:
        """Power a node on again, with its disks; its agent starts if it was started before."""
        node = self.node(name)
        if node.find_pid() is not None:
            raise LabError(f"node {name} is running", hint=f"cut its power with: kairos-p2p lab kill {name}")
        self._wait_ready(name, self._start_holder(node.place))
        self._network().plug(node.place, node.pid)
        if name in self._meant.enabled:
            node.start_agent()

    def partition(self, groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """Cut all traffic between groups, silently; unnamed nodes form one more. The groups in force."""
        full = check_groups(groups, self.topology.names)
        self._network().partition(full)
        self._remember(replace(self._meant, groups=full))
        return full

    def disturb(self, script: str) -> None:
        """Lose packets as a script of `weather` says, besides what a partition cuts."""
        self._network().filter(script)

    def detour(self) -> None:
        """Lead what goes from region to region over a `carrier`, which must be there."""
        self._network().detour()

    def heal(self) -> None:
        """End the partition."""
        self._network().partition(())
        self._remember(replace(self._meant, groups=()))

    def translate(self, region: str, kind: str | None) -> None:
        """Put a region behind this kind of NAT (`topology.NAT_KINDS`), or behind none. Raises UsageError."""
        regions: dict[str, list[str]] = {}
        for place in self.topology.places:
            regions.setdefault(place.region, []).append(place.name)
        wrong = check_nat(regions, region, kind if kind is not None else NAT_KINDS[-1])
        if wrong:
            raise UsageError(wrong, hint=f"regions: {', '.join(regions)}")
        nat = {name: how for name, how in self.topology.nat.items() if name != region}
        if kind is not None:
            nat[region] = kind
        self._network().translate(nat)
        self._remember(replace(self._meant, topology=replace(self.topology, nat=nat)))

    def wait(self, predicate: Callable[[], T], timeout_s: float, what: str) -> T:
        """Poll until the predicate is true; its value. Raises TimedOut."""
        return wait_until(predicate, timeout_s, what, self._hint)

    @property
    def _hint(self) -> str:
        return f"the nodes' logs: {self.folder}/nodes/*/agent.log"

    def _remember(self, meant: state.State) -> None:
        self._meant = meant
        state.write(self.folder, meant)

    @property
    def router_pid(self) -> int:
        """The router's holder, as the host sees it. Raises LabError if it is gone."""
        for found in processes.holders(self.folder):
            if found.place == processes.ROUTER:
                return found.pid
        raise LabError(
            f"the router of lab {self.name} is gone", hint=f"kairos-p2p lab down --name {self.name}"
        )

    def _network(self) -> Network:
        return Network(self.topology, self.router_pid)

    def _environment(self, name: str) -> dict[str, str]:
        env = outfit.environment(self.folder, self._meant.env)
        return machines.with_clock(env, self.topology.clocks.get(name, 0.0))

    def _start_holder(self, place: Place | None) -> subprocess.Popen[bytes]:
        """Spawn a holder for a node, or for the router; it says "ready" on its standard output."""
        name = place.name if place else processes.ROUTER
        folder = self.folder / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        mark = processes.mark_of(self.folder, name)
        spec: dict[str, Any] = {"mark": mark, "hostname": name.strip("@"), "router": place is None}
        env = self._environment(name)
        spec |= {
            "agent": machines.with_disk(agent_argv(), self.topology.slow_disks.get(name, 0.0)),
            "env": env,
        }
        if place is not None:
            spec |= outfit.file_system(folder, self.topology, place, self._meant.token)
            spec["visible"] = outfit.visible(self.folder, env)
        (folder / "holder.json").write_text(json.dumps(spec, indent=1))
        bond_read = bond_write = -1
        if self._bound:
            bond_read, bond_write = os.pipe()
            self._bonds.append(bond_write)
        try:
            with open(folder / "holder.log", "ab") as log:
                return subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", _HOLDER),
                        *(mark, str(folder / "holder.json"), "bound" if self._bound else "free"),
                    ],
                    stdin=bond_read if self._bound else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            if self._bound:
                os.close(bond_read)

    def _wait_ready(self, name: str, process: subprocess.Popen[bytes]) -> None:
        try:
            out, _ = process.communicate(timeout=READY_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise LabError(f"the holder of {name} did not get ready", hint=self._hint) from exc
        if out != b"ready\n":
            said = out.decode(errors="replace").strip().removeprefix("error ") or "it died"
            raise LabError(
                f"node {name} cannot be made: {said}",
                hint="the kernel needs namespaces, overlay and tmpfs; "
                f"see {self.folder}/nodes/{name}/holder.log",
            )


def down_all(root: Path | None = None) -> list[str]:
    """Remove every lab of the lab folder, also what a crash left; the names of those removed."""
    require(())
    root = root or state.lab_root()
    folders = {*state.folders(root), *(found.folder for found in processes.holders(root))}
    for folder in sorted(folders):
        _destroy(folder)
    state.remove_half_made(root)
    state.remove_root(root)
    return sorted(folder.name for folder in folders)


def _destroy(folder: Path) -> None:
    # a creator that is still alive may start another holder meanwhile: look again until there is none
    while doomed := processes.holders(folder):
        nodes = [found for found in doomed if found.place != processes.ROUTER]
        processes.kill_holders(nodes)
        processes.kill_holders([found for found in doomed if found.place == processes.ROUTER])
    state.remove(folder)
