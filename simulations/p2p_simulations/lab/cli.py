"""``kairos-p2p lab``: whole clusters on this machine, and how they are broken.

The verbs are thin: a lab is made, found and changed by `Lab`; what ``run`` looks at is in demo.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import Duration, output_option
from p2p_network.core.errors import P2PError, UsageError
from p2p_simulations.lab import rendering, state
from p2p_simulations.lab import survey as seen
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.lab import Lab, down_all
from p2p_simulations.lab.topology import (
    MAX_FILE_BYTES,
    NAT_KINDS,
    Topology,
    default_topology,
    parse_groups,
    parse_topology,
)

topology_argument = click.argument("topology", required=False, type=click.Path(path_type=Path))
name_option = click.option("--name", metavar="LAB", help="Which lab; needed only if there are several.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def group() -> None:
    """Run whole clusters on this machine, and break them.

    Nodes are ordinary agents in network namespaces: a bridge per region, a router between the regions.
    They don't know that they are in a lab. Without TOPOLOGY (a YAML file, see simulations/README.md) there
    are five nodes in three regions. Needs root.

    \b
    kairos-p2p lab up                         five nodes, left running
    kairos-p2p lab partition 'n1,n2|n3,n4,n5' cut the network in two
    kairos-p2p lab kill n3                    pull the plug
    kairos-p2p lab exec n1 -- kairos-p2p status
    kairos-p2p lab down                       nothing stays behind
    """


@group.command()
@topology_argument
@click.option(
    "--scenario",
    type=click.Path(path_type=Path),
    help="Play a scenario of the simulator (simulations/scenarios) with real processes instead.",
)
@click.option("--keep", is_flag=True, help="Leave the lab running afterwards, also if it failed.")
@click.option(
    "--timeout", type=Duration(), default="120s", show_default=True, help="Give up after this long."
)
def run(topology: Path | None, scenario: Path | None, keep: bool, timeout: float) -> None:
    """Form a cluster, look at it from all sides, clean up.

    Succeeds only if every node got ready, the cluster's own API lists them all as Ready, and every pair of
    nodes can ping each other over the VPN.

    With --scenario the file's nodes, faults and expectations are played in real time, and the end is compared
    with that of the same file in the simulator. Faults that a lab has not are refused before anything starts.
    """
    if scenario is not None:
        if topology is not None:
            raise UsageError("a scenario brings its own topology", hint="leave TOPOLOGY or --scenario out")
        _play(scenario, keep, timeout)
        return
    shape = _read_topology(topology)
    with _terminable(), _lab_for_run(shape, keep) as lab:
        survey = _form_cluster(lab, timeout)
        out.emit(rendering.report(survey).rstrip("\n"))
        if found := seen.problems(survey):
            raise LabError("not all was seen that should have been:\n  " + "\n  ".join(found))
        out.note("all of it was seen")


@group.command()
@topology_argument
@click.option("--name", default="lab", show_default=True, metavar="LAB", help="What to call the lab.")
def up(topology: Path | None, name: str) -> None:
    """Start a lab and leave it running."""
    shape = _read_topology(topology)
    with _terminable():
        lab = Lab.create(shape, name)
        try:
            lab.up()
        except BaseException:
            with _held():
                lab.down()
            raise
    out.note(f"{_size(shape)} are up; their logs: {lab.folder}/nodes/*/agent.log")
    out.emit(name)


@group.command()
@output_option
@name_option
def status(output: out.Output, name: str | None) -> None:
    """What is each node of the lab, and what does it say of itself?"""
    lab = Lab.attach(name)
    rows = [_status_row(lab, place.name) for place in lab.topology.places]
    out.print_rows(rows, _STATUS_COLUMNS, output, name=lambda row: row["node"], empty="no nodes")
    if lab.groups:
        out.note(f"partitioned: {_groups_text(lab.groups)}")


@group.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@name_option
@click.pass_context
def exec_(ctx: click.Context, node: str, command: tuple[str, ...], name: str | None) -> None:
    """Run a command in a node: lab exec NODE -- CMD..."""
    argv = Lab.attach(name).node(node).enter_argv(command)
    with _terminable(), subprocess.Popen(argv) as process:
        try:
            status = _wait_through_interrupts(process)
        except SystemExit:
            process.terminate()
            raise
    ctx.exit(status if status >= 0 else 128 - status)


@group.command()
@click.argument("node")
@click.option(
    "--what",
    type=click.Choice(("node", "agent", "dataplane", "k3s")),
    default="node",
    show_default=True,
    help="node is a power cut; a killed agent is started again by its supervisor.",
)
@name_option
def kill(node: str, what: str, name: str | None) -> None:
    """kill -9 a node or a part of it."""
    Lab.attach(name).kill(node, what)
    after = f"; it comes back with: kairos-p2p lab boot {node}" if what == "node" else ""
    out.note(f"killed: {what} of {node}{after}" if what != "node" else f"{node} has no power{after}")


@group.command()
@click.argument("node")
@name_option
def boot(node: str, name: str | None) -> None:
    """Power a node on again, with its disks."""
    Lab.attach(name).boot(node)
    out.note(f"{node} is running")


@group.command()
@click.argument("groups")
@name_option
def partition(groups: str, name: str | None) -> None:
    """Cut the network: lab partition 'A,B|C,D,E'.

    Everything between the groups is dropped silently, in both directions. Nodes not named form one more
    group, so a single name cuts that node off. A new partition replaces the old one.
    """
    lab = Lab.attach(name)
    done = lab.partition(parse_groups(groups, lab.topology.names))
    out.note(f"partitioned: {_groups_text(done)}; end it with: kairos-p2p lab heal")


@group.command()
@name_option
def heal(name: str | None) -> None:
    """End the partition."""
    Lab.attach(name).heal()
    out.note("all nodes can reach each other again")


@group.command()
@click.argument("region")
@click.argument("kind", type=click.Choice([*NAT_KINDS, "none"]))
@name_option
def nat(region: str, kind: str, name: str | None) -> None:
    """Put a region behind NAT: lab nat west symmetric; or behind none.

    Connections that stand may break, as when a router is replaced. From outside the region is seen as
    198.19.NUMBER.1.
    """
    Lab.attach(name).translate(region, None if kind == "none" else kind)
    out.note(f"region {region} is behind {'no' if kind == 'none' else kind} NAT")


@group.command()
@click.option("--all", "every", is_flag=True, help="Every lab, also what a crash left behind.")
@name_option
def down(every: bool, name: str | None) -> None:
    """End a lab; nothing stays behind. No lab is no error."""
    if every and name:
        raise UsageError("--all and --name exclude each other", hint="--all ends every lab")
    if every:
        with _held():
            removed = down_all()
        out.note(f"removed: {', '.join(removed)}" if removed else "there was no lab")
        return
    if name is None and not state.folders(state.lab_root()):
        out.note("there was no lab")
        return
    try:
        lab = Lab.attach(name)
    except LabError:
        if name is not None and not (state.lab_root() / name).exists():
            out.note(f"there was no lab {name}")
            return
        raise
    with _held():
        lab.down()
    out.note(f"removed: {lab.name}")


def _play(path: Path, keep: bool, timeout_s: float) -> None:
    """A scenario in the lab and in the simulator. Raises P2PError if either fails, or they differ."""
    from p2p_simulations.lab.play import Player
    from p2p_simulations.lab.scenario import topology_of, unused
    from p2p_simulations.sim.ending import differences, ending_of
    from p2p_simulations.sim.files import parse_scenario
    from p2p_simulations.sim.world import World

    plan = parse_scenario(_read(path, "scenario"), str(path))
    shape = topology_of(plan, str(path))
    for said in unused(plan):
        out.note(f"without effect in a lab: {said}")
    world = World(plan, 1)
    try:
        world.run()
        simulated = ending_of(world)
    except AssertionError as exc:
        raise LabError(f"the simulator fails: {exc}", hint=f"kairos-p2p sim run {path}") from exc
    finally:
        world.close()
    with _terminable(), _lab_for_run(shape, keep) as lab:
        ending = Player(lab, plan, out.note, timeout_s).play()
    rows = [{"node": name, "role": n.role, "state": "ready" if n.ready else "not ready",
             "identity": "kept" if n.same_identity else "new", "address": "kept" if n.same_address else "new"}
            for name, n in ending.nodes.items()]  # fmt: skip
    columns = tuple(_status_column(key) for key in ("node", "role", "state", "identity", "address"))
    out.print_rows(rows, columns, "table", name=lambda row: row["node"], empty="no nodes")
    if found := differences(plan, ending, simulated, ("the lab", "the simulator")):
        raise LabError("the lab and the simulator end differently:\n  " + "\n  ".join(found))
    out.note("the lab and the simulator end alike")


def _read_topology(path: Path | None) -> Topology:
    if path is None:
        return default_topology()
    return parse_topology(_read(path, "topology").decode(errors="replace"), str(path))


def _read(path: Path, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"cannot read the {what} {path}: {exc.strerror}") from exc


def _size(topology: Topology) -> str:
    return f"{len(topology.places)} nodes in {len(topology.regions)} regions"


def _groups_text(groups: tuple[tuple[str, ...], ...]) -> str:
    return " | ".join(",".join(names) for names in groups)


def _status_column(key: str) -> out.Column[dict[str, str]]:
    return out.Column(key.upper().replace("_", " "), lambda row: row[key])


_STATUS_KEYS = ("node", "region", "address", "agent", "vpn_address", "role", "state", "reason")
_STATUS_COLUMNS = tuple(_status_column(key) for key in _STATUS_KEYS)


def _status_row(lab: Lab, name: str) -> dict[str, str]:
    node = lab.node(name)
    if node.find_pid() is None:
        agent = "no power"
    else:
        told = node.agent_state()
        agent = "running" if told["pid"] else ("failing" if told["wanted"] else "stopped")
    view = seen.node_view(node.place, node.observe())
    return {
        "node": name,
        "region": node.place.region,
        "address": node.place.ipv4,
        "agent": agent,
        "vpn_address": view.ipv4,
        "role": view.role,
        "state": "ready" if view.ready else view.state,
        "reason": view.reason or view.error,
    }


def _show_failure(lab: Lab, survey: seen.Survey) -> None:
    """What a failed run leaves a person with, before the lab is gone: the nodes' words and the logs' ends."""
    out.note(rendering.node_table(survey.nodes))
    told: dict[str, str] = {}
    silent = [view.name for view in survey.nodes if not view.answers]
    stuck = [view.name for view in survey.nodes if view.answers and not view.ready]
    for name in silent + stuck[:1]:  # those that answer have said above what they wait for
        lines = lab.node(name).log_tail(8).splitlines()
        words = [line for line in lines if not line.startswith("# lab:")]
        if words and words[-1] in told:
            out.note(f"\nlast words of {name}'s agent: as {told[words[-1]]}'s")
        elif lines:
            told[words[-1] if words else ""] = name
            out.note(f"\nlast words of {name}'s agent:")
            for line in lines:
                out.note("  " + out.printable(line))


def _form_cluster(lab: Lab, timeout_s: float) -> seen.Survey:
    """What the demo saw. Raises P2PError after it has shown how far the nodes came."""
    from p2p_simulations.lab.demo import Demo
    from p2p_simulations.lab.progress import choose

    began = time.monotonic()
    with choose() as progress:
        lab.up(agents=False)
        progress.say(f"{_size(lab.topology)} are up after {time.monotonic() - began:.1f} s")
        demo = Demo(lab, progress, timeout_s)
        try:
            return demo.run()
        except P2PError as exc:
            failure = exc  # told when the live table is gone
    _show_failure(lab, demo.survey)
    raise failure


@contextlib.contextmanager
def _lab_for_run(shape: Topology, keep: bool) -> Iterator[Lab]:
    """A lab that is gone afterwards, whatever happens; with `keep` only if it was interrupted."""
    lab: Lab | None = None
    kept = False
    try:
        with _held():
            lab = Lab.create(shape, f"run-{os.getpid()}", bound=True)
        yield lab
        kept = keep
    except P2PError:
        kept = keep
        raise
    finally:
        if lab is not None and kept:
            lab.release()
            out.note(f"the lab is left running: kairos-p2p lab status; end it: lab down --name {lab.name}")
        elif lab is not None:
            with _held():
                lab.down()


def _wait_through_interrupts(process: subprocess.Popen[bytes]) -> int:
    """The exit status; Ctrl-C is for the command, which shares our terminal, and not for us."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM (and a terminal that hangs up) unwinds like Ctrl-C does, so that the lab is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Signals wait until the end of the block: what is begun here is also finished."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
