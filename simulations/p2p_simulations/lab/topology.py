"""Which nodes stand in which regions, and how are they addressed? Pure.

A topology is a small YAML file; unknown keys, duplicates and aliases are refused with file, line and key::

    regions:                 # name: how many nodes (n1, n2, ... counted through), or their names
      east: 2
      west: [n3, n4]
      north: 1
    servers: 3               # how many nodes run the control plane; default 3, or 1 below three nodes
    minimum_nodes: 5         # wait for so many before the genesis; default: all
    discovery: {bootstrap: true, dht: true, mdns: true}
    nat: {west: symmetric}   # regions behind NAT: full-cone (one node), port-restricted or symmetric
    clocks: {n3: +1h}        # by how much the clock of a machine is wrong
    slow_disks: {n2: 200ms}  # so much longer takes every fsync there
    config: {k3s: {args: [--debug]}}          # merged into the cloud-config of every node
    nodes: {n5: {p2p: {role: worker}}}        # merged into the cloud-config of one node

Addresses follow from the position: region r is 198.18.r.0/24 (the range for benchmarks, RFC 2544; it
collides neither with the VPN nor with k3s) and fd6c:6162:0:r::/64; the router is .1, nodes start at .11.
A region behind NAT is seen as 198.19.r.1 from outside, and has no IPv6 there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from p2p_network.core.errors import ConfigError, Problem, UsageError, nearest

MAX_NODES: Final = 64
MAX_REGIONS: Final = 16
MAX_FILE_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 20
MESH_PORT: Final = 4701

_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")
_NAME_HINT = "1 to 32 of a-z, 0-9 and - (no - at the ends)"
NAT_KINDS: Final = ("full-cone", "port-restricted", "symmetric")
_KEYS = ("regions", "servers", "minimum_nodes", "discovery", "nat", "clocks", "slow_disks", "config", "nodes")
_OFFSET = re.compile(r"([+-]?)([0-9]{1,6}(?:\.[0-9]+)?)(ms|s|m|h)")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MAX_SLOW_DISK_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node stands. `index` counts the lab's nodes from 1, `region_index` the regions from 1."""

    name: str
    region: str
    index: int
    region_index: int
    ipv4: str
    ipv6: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Discovery:
    """How the nodes may find each other: what the token says."""

    bootstrap: bool = True
    dht: bool = True
    mdns: bool = True


@dataclass(frozen=True, slots=True)
class Topology:
    """All nodes of a lab, in order.

    Attributes:
        servers: how many nodes are meant to run the control plane.
        minimum_nodes: written into every cloud-config.
        config: merged into every cloud-config.
        nat: regions behind NAT, and which kind of it (`NAT_KINDS`).
        clocks: by how many seconds a node's clock is wrong.
        slow_disks: by how many seconds every fsync of a node is longer.
    """

    places: tuple[Place, ...]
    servers: int
    minimum_nodes: int
    discovery: Discovery = Discovery()
    config: Mapping[str, Any] = field(default_factory=dict)
    nat: Mapping[str, str] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    slow_disks: Mapping[str, float] = field(default_factory=dict)

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in order; the first has number 1."""
        return tuple(dict.fromkeys(place.region for place in self.places))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes, in order."""
        return tuple(place.name for place in self.places)

    def has_kubelet(self, place: Place) -> bool:
        """Whether a server at this place would register a Node; k3s's --disable-agent keeps it from that."""
        sections = [document.get("k3s") for document in (place.config, self.config)]
        args = next((s["args"] for s in sections if isinstance(s, Mapping) and s.get("args")), ())
        return "--disable-agent" not in args

    def place(self, name: str) -> Place:
        """The place of the node called `name`. Raises UsageError that names the nearest one."""
        for place in self.places:
            if place.name == name:
                return place
        near = nearest(name, self.names)
        hint = f"did you mean {near}? " if near else ""
        raise UsageError(f"no node {name!r} in this lab", hint=f"{hint}nodes: {', '.join(self.names)}")

    def bootstrap(self) -> tuple[str, ...]:
        """host:port of the first node of each region that can be dialled; () if there shall be none."""
        if not self.discovery.bootstrap:
            return ()
        first = {place.region: place for place in reversed(self.places)}
        return tuple(f"{first[region].ipv4}:{MESH_PORT}" for region in self.regions if region not in self.nat)


def public_ipv4(region_index: int) -> str:
    """The address under which a region behind NAT is seen."""
    return f"198.19.{region_index}.1"


def router_ipv4(region_index: int) -> str:
    """The router's IPv4 address in a region."""
    return f"198.18.{region_index}.1"


def router_ipv6(region_index: int) -> str:
    """The router's IPv6 address in a region."""
    return f"fd6c:6162:0:{region_index:x}::1"


def make_topology(
    regions: Mapping[str, Sequence[str]],
    *,
    servers: int | None = None,
    minimum_nodes: int | None = None,
    discovery: Discovery = Discovery(),
    config: Mapping[str, Any] | None = None,
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    nat: Mapping[str, str] | None = None,
    clocks: Mapping[str, float] | None = None,
    slow_disks: Mapping[str, float] | None = None,
) -> Topology:
    """A topology from names of nodes per region; addresses and defaults are filled in."""
    places: list[Place] = []
    for region_index, (region, names) in enumerate(regions.items(), start=1):
        for offset, name in enumerate(names):
            places.append(
                Place(
                    name=name,
                    region=region,
                    index=len(places) + 1,
                    region_index=region_index,
                    ipv4=f"198.18.{region_index}.{11 + offset}",
                    ipv6=f"fd6c:6162:0:{region_index:x}::{11 + offset:x}",
                    config=(nodes or {}).get(name, {}),
                )
            )
    assert places, "a lab has at least one node"
    assert len({place.name for place in places}) == len(places), "names of nodes are unique"
    count = len(places)
    return Topology(
        places=tuple(places),
        servers=servers if servers is not None else (3 if count >= 3 else 1),
        minimum_nodes=minimum_nodes if minimum_nodes is not None else count,
        discovery=discovery,
        config=config or {},
        nat=dict(nat or {}),
        clocks=dict(clocks or {}),
        slow_disks=dict(slow_disks or {}),
    )


def check_nat(regions: Mapping[str, Sequence[str]], region: str, kind: str) -> str:
    """Why a region can't stand behind this kind of NAT; "" if it can."""
    if region not in regions:
        near = nearest(region, tuple(regions))
        return f"there is no region {region!r}" + (f"; did you mean {near}?" if near else "")
    if kind not in NAT_KINDS:
        near = nearest(kind, NAT_KINDS)
        return f"{kind!r} is no kind of NAT: {', '.join(NAT_KINDS)}" + (
            f"; did you mean {near}?" if near else ""
        )
    if kind == "full-cone" and len(regions[region]) != 1:
        return "full-cone NAT stands before a region of one node"
    return ""


def default_topology() -> Topology:
    """Five nodes in three regions."""
    return make_topology({"east": ("n1", "n2"), "west": ("n3", "n4"), "north": ("n5",)})


def parse_topology(text: str, file: str) -> Topology:
    """Read a topology file. `file` is its name for messages. Raises ConfigError with all problems."""
    return _Reader(text, file).topology()


def parse_groups(text: str, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Read ``A,B|C,D,E``: the groups that can still talk among themselves.

    Nodes that are not named form one more group, so ``n1`` alone cuts n1 off. Raises UsageError.
    """
    groups = [[word.strip() for word in group.split(",")] for group in text.split("|")]
    return check_groups(groups, names)


def check_groups(groups: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The groups of a partition, completed by a group of all nodes that none names. Raises UsageError."""
    usage = "write it like n1,n2|n3,n4,n5; nodes not named form one more group"
    seen: set[str] = set()
    for group in groups:
        for name in group:
            if not name:
                raise UsageError("the partition has an empty name or group", hint=usage)
            if name not in names:
                near = nearest(name, names)
                raise UsageError(
                    f"the partition names {name!r}, which is no node of this lab",
                    hint=f"did you mean {near}?" if near else f"nodes: {', '.join(names)}",
                )
            if name in seen:
                raise UsageError(f"the partition names {name} twice", hint=usage)
            seen.add(name)
    rest = tuple(name for name in names if name not in seen)
    full = tuple(tuple(group) for group in groups if group) + ((rest,) if rest else ())
    if len(full) < 2:
        raise UsageError("this partition cuts nothing: all nodes are in one group", hint=usage)
    return full


def as_document(topology: Topology) -> dict[str, Any]:
    """The topology as plain data, for the lab's state file; `from_document` reads it back."""
    regions: dict[str, list[str]] = {}
    for place in topology.places:
        regions.setdefault(place.region, []).append(place.name)
    discovery = topology.discovery
    return {
        "regions": regions,
        "servers": topology.servers,
        "minimum_nodes": topology.minimum_nodes,
        "discovery": {"bootstrap": discovery.bootstrap, "dht": discovery.dht, "mdns": discovery.mdns},
        "nat": dict(topology.nat),
        "clocks": dict(topology.clocks),
        "slow_disks": dict(topology.slow_disks),
        "config": dict(topology.config),
        "nodes": {place.name: dict(place.config) for place in topology.places if place.config},
    }


def from_document(document: Mapping[str, Any]) -> Topology:
    """Inverse of `as_document`. KeyError or TypeError if the state file was tampered with."""
    return make_topology(
        document["regions"],
        servers=document["servers"],
        minimum_nodes=document["minimum_nodes"],
        discovery=Discovery(**document["discovery"]),
        config=document["config"],
        nodes=document["nodes"],
        nat=document["nat"],
        clocks=document["clocks"],
        slow_disks=document["slow_disks"],
    )


class _Reader:
    """Walks the YAML tree and collects every problem with its place."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._problems: list[Problem] = []
        self._names: dict[str, list[str]] = {}

    def topology(self) -> Topology:
        root = self._compose()
        values = {} if root is None else dict(self._mapping(root, "", _KEYS))
        regions = self._regions(values)
        count = sum(len(names) for names in regions.values())
        servers = self._number(values, "servers", 1, max(count, 1))
        minimum = self._number(values, "minimum_nodes", 1, max(count, 1))
        discovery = self._discovery(values)
        config = self._plain(values["config"], "config") if "config" in values else {}
        nat = self._nat(values, regions)
        names = [name for of_region in regions.values() for name in of_region]
        clocks = self._seconds(values, "clocks", names, -float("inf"), float("inf"))
        slow_disks = self._seconds(values, "slow_disks", names, 0.0, MAX_SLOW_DISK_S)
        nodes = self._nodes(values, names)
        if self._problems:
            raise ConfigError(self._problems, hint="an example stands in simulations/README.md")
        return make_topology(
            regions,
            servers=servers,
            minimum_nodes=minimum,
            discovery=discovery,
            config=config,
            nodes=nodes,
            nat=nat,
            clocks=clocks,
            slow_disks=slow_disks,
        )

    def _compose(self) -> yaml.Node | None:
        if len(self._text.encode()) > MAX_FILE_BYTES:
            self._fail(None, "", f"the file is larger than {MAX_FILE_BYTES // 1024} KiB")
            return None
        depth = 0
        try:
            for event in yaml.parse(self._text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    self._fail(event, "", f"aliases (*{event.anchor}) are not accepted here")
                    return None
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    self._fail(event, "", f"nested deeper than {MAX_DEPTH} levels")
                    return None
            root: yaml.Node | None = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            self._problems.append(Problem(self._file, line, column, "", f"this is not YAML: {exc.problem}"))
            return None
        except yaml.YAMLError as exc:
            self._fail(None, "", f"this is not YAML: {exc}")
            return None
        if root is None:
            self._fail(None, "", "the file is empty", "at least `regions` is needed")
        return root

    def _regions(self, values: Mapping[str, yaml.Node]) -> dict[str, list[str]]:
        if "regions" not in values:
            if not self._problems:
                self._fail(None, "regions", "is missing", "for example regions: {east: 2, west: 2, north: 1}")
            return {}
        regions: dict[str, list[str]] = {}
        used: set[str] = set()
        counted = 0
        for region, node in self._mapping(values["regions"], "regions"):
            key = f"regions.{region}"
            if not _NAME.match(region):
                self._fail(node, key, "is no name of a region", _NAME_HINT)
            names: list[str] = []
            if isinstance(node, yaml.SequenceNode):
                for item in node.value:
                    name = item.value if isinstance(item, yaml.ScalarNode) else ""
                    if not _NAME.match(name):
                        self._fail(item, key, f"{name!r} is no name of a node", _NAME_HINT)
                    elif name in used:
                        self._fail(item, key, f"there are two nodes called {name}")
                    names.append(name)
                    used.add(name)
            else:
                wanted = self._int(node, key, 1, MAX_NODES, "a number of nodes or a list of their names")
                for _ in range(wanted or 0):
                    counted += 1
                    while f"n{counted}" in used:
                        counted += 1
                    names.append(f"n{counted}")
                    used.add(f"n{counted}")
            if not names and isinstance(node, yaml.SequenceNode):
                self._fail(node, key, "a region has at least one node")
            regions[region] = names
        if not regions and not self._problems:
            self._fail(values["regions"], "regions", "at least one region is needed")
        if len(regions) > MAX_REGIONS or len(used) > MAX_NODES:
            self._fail(values["regions"], "regions", f"at most {MAX_REGIONS} regions and {MAX_NODES} nodes")
        return regions

    def _discovery(self, values: Mapping[str, yaml.Node]) -> Discovery:
        if "discovery" not in values:
            return Discovery()
        flags: dict[str, bool] = {}
        for key, node in self._mapping(values["discovery"], "discovery", ("bootstrap", "dht", "mdns")):
            if isinstance(node, yaml.ScalarNode) and node.value in ("true", "false"):
                flags[key] = node.value == "true"
            else:
                self._fail(node, f"discovery.{key}", "must be true or false")
        return Discovery(**flags)

    def _nat(self, values: Mapping[str, yaml.Node], regions: Mapping[str, Sequence[str]]) -> dict[str, str]:
        if "nat" not in values:
            return {}
        found: dict[str, str] = {}
        for region, node in self._mapping(values["nat"], "nat"):
            kind = node.value if isinstance(node, yaml.ScalarNode) else ""
            wrong = check_nat(regions, region, kind)
            if wrong:
                self._fail(node, f"nat.{region}", wrong)
            found[region] = kind
        return found

    def _seconds(
        self, values: Mapping[str, yaml.Node], key: str, names: Sequence[str], least: float, most: float
    ) -> dict[str, float]:
        """A duration for some nodes."""
        if key not in values:
            return {}
        found: dict[str, float] = {}
        for name, node in self._mapping(values[key], key, names):
            match = _OFFSET.fullmatch(str(node.value)) if isinstance(node, yaml.ScalarNode) else None
            if match is None:
                self._fail(node, f"{key}.{name}", "must be a duration", "write it like 200ms, +90s or -1h")
                continue
            sign, number, unit = match.groups()
            seconds = float(number) * _UNITS_S[unit] * (-1 if sign == "-" else 1)
            if not least <= seconds <= most:
                self._fail(node, f"{key}.{name}", f"must be from {least:g} to {most:g} s")
            found[name] = seconds
        return found

    def _nodes(self, values: Mapping[str, yaml.Node], names: Sequence[str]) -> dict[str, Any]:
        if "nodes" not in values:
            return {}
        pairs = self._mapping(values["nodes"], "nodes", names)
        return {name: self._plain(node, f"nodes.{name}") for name, node in pairs}

    def _plain(self, node: yaml.Node, key: str) -> dict[str, Any]:
        """A free mapping (part of a cloud-config) as plain data; duplicates refused at every depth."""
        before = len(self._problems)
        self._refuse_duplicates(node, key)
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, key, "must be a mapping of cloud-config keys")
        if len(self._problems) > before:
            return {}
        loader = yaml.SafeLoader("")
        try:
            document: dict[str, Any] = loader.construct_document(node)
        except (yaml.YAMLError, ValueError) as exc:
            self._fail(node, key, f"cannot be read: {exc}")
            return {}
        return document

    def _refuse_duplicates(self, node: yaml.Node, key: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in self._mapping(node, key):
                self._refuse_duplicates(value, f"{key}.{name}")
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_duplicates(item, key)

    def _mapping(
        self, node: yaml.Node, key: str, known: Sequence[str] | None = None
    ) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, key, "must be a mapping")
            return
        seen: set[str] = set()
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            dotted = f"{key}.{name}" if key else name
            if name in seen:
                self._fail(name_node, dotted, "stands here a second time")
            elif known is not None and name not in known:
                near = nearest(name, known)
                self._fail(
                    name_node,
                    dotted,
                    "unknown key",
                    f"did you mean {near}?" if near else f"known: {', '.join(known)}",
                )
            else:
                seen.add(name)
                yield name, value

    def _number(self, values: Mapping[str, yaml.Node], key: str, low: int, high: int) -> int | None:
        return self._int(values[key], key, low, high, "a whole number") if key in values else None

    def _int(self, node: yaml.Node, key: str, low: int, high: int, what: str) -> int | None:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        if not re.fullmatch(r"[0-9]{1,4}", text):
            self._fail(node, key, f"must be {what}")
            return None
        if not low <= int(text) <= high:
            self._fail(node, key, f"must be between {low} and {high}, is {int(text)}")
            return None
        return int(text)

    def _fail(self, where: yaml.Node | yaml.Event | None, key: str, message: str, hint: str = "") -> None:
        mark = where.start_mark if where is not None else None
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        self._problems.append(Problem(self._file, line, column, key, message, hint))
