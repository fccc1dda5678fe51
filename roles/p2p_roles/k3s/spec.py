"""With which files, arguments and environment does k3s run, given a role and a user's wishes?

Pure. k3s is driven by one drop-in of ours, ``config.yaml.d/90-kairos-p2p.yaml``; the user's
``config.yaml`` is never touched, and what the user gives in ``k3s.args`` and ``k3s.env`` goes on top.
What would take the decision away from the genesis (``--cluster-init``, ``--server``, a token, ...) is
refused with a sentence. ``cluster-init`` is in the drop-in of a "server-init" and nowhere else.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from p2p_network.core.errors import RoleError
from p2p_roles.assign import Role
from p2p_roles.events import StartKind
from p2p_roles.genesis.messages import Datastore, Timing
from p2p_roles.timing import LAN, k3s_arguments

DROP_IN: Final = "config.yaml.d/90-kairos-p2p.yaml"
API_PORT: Final = 6443

_OURS: Final = {
    "cluster-init": "the genesis decides which server initialises",
    "cluster-reset": "a reset is a recovery, not a way to start",
    "server": "the genesis decides whom to join",
    "token": "the genesis makes the token",
    "token-file": "the genesis makes the token",
    "agent-token": "the genesis makes the token",
    "agent-token-file": "the genesis makes the token",
    "config": "kairos-p2p's drop-in lies beside the default config file",
    "datastore-endpoint": "give it as p2p.auto.ha.external_db, so that all servers use it",
}
_SHORT: Final = {"s": "server", "t": "token", "c": "config", "d": "data-dir"}
_OUR_ENV: Final = {
    "K3S_TOKEN": "token",
    "K3S_TOKEN_FILE": "token-file",
    "K3S_AGENT_TOKEN": "agent-token",
    "K3S_AGENT_TOKEN_FILE": "agent-token-file",
    "K3S_URL": "server",
    "K3S_CLUSTER_INIT": "cluster-init",
    "K3S_CLUSTER_RESET": "cluster-reset",
    "K3S_CONFIG_FILE": "config",
    "K3S_DATASTORE_ENDPOINT": "datastore-endpoint",
}
_LABEL: Final = re.compile(r"[^A-Za-z0-9._-]+")
_CLUSTER_WIDE: Final = re.compile(
    r"(cluster-cidr|service-cidr|cluster-dns|cluster-domain|service-node-port-range|flannel-.*"
    r"|egress-selector-mode|secrets-encryption.*|embedded-registry|disable.*)"
)


@dataclass(frozen=True, slots=True)
class SectionOptions:
    """One of the sections ``k3s`` and ``k3s-agent`` of a cloud-config.

    Attributes:
        args, env: the user's, in the user's order.
        replace_args: the user's arguments instead of our conveniences (flannel-iface, tls-san, labels,
            node name); what the genesis needs stays.
        replace_env: k3s gets the user's environment (and PATH, HOME) instead of ours plus the user's.
        embedded_registry: k3s's peer-to-peer image mirror.
    """

    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    replace_args: bool = False
    replace_env: bool = False
    embedded_registry: bool = False


@dataclass(frozen=True, slots=True)
class K3sOptions:
    """What a cloud-config says about k3s.

    Attributes:
        external_db: datastore endpoint, "" for none.
        snapshot_schedule: cron expression of etcd's snapshots; "" for none, None for k3s's own.
        snapshots_kept: how many k3s keeps.
    """

    server: SectionOptions = SectionOptions()
    agent: SectionOptions = SectionOptions()
    external_db: str = field(default="", repr=False)
    snapshot_schedule: str | None = None
    snapshots_kept: int = 5


@dataclass(frozen=True, slots=True)
class K3sPaths:
    """Where k3s keeps what."""

    config_dir: str = "/etc/rancher/k3s"
    data_dir: str = "/var/lib/rancher/k3s"

    @property
    def drop_in(self) -> str:
        """Our drop-in."""
        return f"{self.config_dir}/{DROP_IN}"

    @property
    def kubeconfig(self) -> str:
        """The admin's kubeconfig, written by k3s on a server."""
        return f"{self.config_dir}/k3s.yaml"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What k3s must know of this machine.

    Attributes:
        node_name: Kubernetes node name; never changes (`node_name`).
        node_ip: its VPN address (or, without VPN, the one to use).
        device: the TUN device for flannel, "" to let k3s choose.
        region, zone: for the topology labels; "" for none.
        names: further names and addresses under which the API is reached.
        labels: further ones, KEY=VALUE. taints: KEY[=VALUE]:EFFECT, which count when the node registers.
    """

    node_name: str
    node_ip: str
    device: str = ""
    region: str = ""
    zone: str = ""
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    taints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file to write atomically, mode 0600.

    Attributes:
        seed: it must not replace a different one: that would be data of another cluster.
        keep: an existing one is left as it is.
    """

    path: str
    content: bytes = field(repr=False)
    seed: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class K3sSpec:
    """Everything that a start of k3s needs.

    Attributes:
        argv: after the binary's path.
        env: on top of the agent's own environment; if `bare_env`, of nothing but PATH and HOME.
        requires: a path that must exist, else k3s would silently begin a cluster of its own; "" if none.
    """

    kind: StartKind
    role: Role
    argv: tuple[str, ...]
    env: Mapping[str, str]
    bare_env: bool
    files: tuple[FileSpec, ...]
    paths: K3sPaths
    requires: str = ""

    @property
    def config(self) -> str:
        """The drop-in's text; contains secrets."""
        return self.files[0].content.decode()

    @property
    def settings(self) -> str:
        """The drop-in but for how this start joins: a k3s that runs with others has to be started again."""
        lines = self.config.splitlines()
        return "\n".join(line for line in lines if not line.startswith(("cluster-init:", "server:")))


def build(
    kind: StartKind,
    *,
    facts: NodeFacts,
    options: K3sOptions,
    datastore: Datastore,
    server_token: str,
    agent_token: str,
    join_ip: str = "",
    ca_files: tuple[tuple[str, bytes], ...] = (),
    timing: Timing = LAN,
    more_files: tuple[FileSpec, ...] = (),
    paths: K3sPaths = K3sPaths(),
) -> K3sSpec:
    """The spec of one start.

    Args:
        server_token: in K10 form; "" for an agent.
        join_ip: VPN address of a server; needed by server-join (with etcd) and agent.
        ca_files: for server-init, name below ``server/tls`` and content.
        more_files: to be there before k3s starts, such as manifests.
        timing: as certified; equal on all servers, so ``replace_args`` leaves it alone.

    Raises:
        RoleError: an option of the user takes a decision of the genesis away.
    """
    role: Role = "agent" if kind == "agent" else "server"
    section = options.agent if role == "agent" else options.server
    paths = _checked(section, "k3s-agent" if role == "agent" else "k3s", paths)
    config: dict[str, object] = {}
    if role == "agent":
        assert join_ip, "an agent joins a server"
        config["server"] = api_url(join_ip)
        config["token"] = agent_token
    else:
        _server_config(config, kind, datastore, join_ip, options.external_db)
        config["token"] = server_token
        config["agent-token"] = agent_token
        config |= k3s_arguments(timing, etcd=datastore == "etcd")
        if section.embedded_registry:
            config["embedded-registry"] = True
        if datastore == "etcd" and options.snapshot_schedule == "":
            config["etcd-disable-snapshots"] = True
        elif datastore == "etcd" and options.snapshot_schedule is not None:
            config["etcd-snapshot-schedule-cron"] = options.snapshot_schedule
            config["etcd-snapshot-retention"] = options.snapshots_kept
    config["node-ip"] = facts.node_ip
    if paths.data_dir != K3sPaths().data_dir:
        config["data-dir"] = paths.data_dir
    if role == "server" and paths.config_dir != K3sPaths().config_dir:
        config["write-kubeconfig"] = paths.kubeconfig
    if not section.replace_args:
        config |= _conveniences(facts, role)
    files = [FileSpec(paths.drop_in, render_yaml(config).encode())]
    if kind in ("server-init", "server-restore"):
        tls = f"{paths.data_dir}/server/tls"
        files += [FileSpec(f"{tls}/{name}", content, seed=True) for name, content in ca_files]
    files += [*_mirrors(options, paths), *more_files]
    env = dict(section.env)
    if paths.config_dir != K3sPaths().config_dir:
        env["K3S_CONFIG_FILE"] = f"{paths.config_dir}/config.yaml"
    return K3sSpec(
        kind,
        role,
        (role, *section.args),
        env,
        section.replace_env,
        tuple(files),
        paths,
        _required(kind, datastore, join_ip, paths),
    )


def by_hand(
    role: Role, *, facts: NodeFacts, options: K3sOptions, more_files: tuple[FileSpec, ...] = ()
) -> K3sSpec:
    """The spec of a k3s that the user runs without agreed roles: only what the user said, and labels and
    names of the certificate where `replace_args` doesn't say otherwise. Raises RoleError."""
    section = options.agent if role == "agent" else options.server
    paths = paths_of(options, role, by_hand=True)
    flags = {
        _SHORT.get(w.lstrip("-").partition("=")[0], w.lstrip("-").partition("=")[0]) for w in section.args
    }
    if role == "agent" and "server" not in flags and "K3S_URL" not in section.env:
        raise RoleError(
            "k3s-agent is enabled by hand, but it is not told which server to join",
            hint="set k3s-agent.env.K3S_URL and K3S_TOKEN, or p2p.network_token to have it found",
        )
    config = {} if section.replace_args else _conveniences(facts, role)
    if role == "server" and section.embedded_registry:
        config["embedded-registry"] = True
    files = [FileSpec(paths.drop_in, render_yaml(config).encode()), *more_files, *_mirrors(options, paths)]
    return K3sSpec(
        "agent" if role == "agent" else "server",
        role,
        (role, *section.args),
        dict(section.env),
        section.replace_env,
        tuple(files),
        paths,
    )


def _mirrors(options: K3sOptions, paths: K3sPaths) -> tuple[FileSpec, ...]:
    if not (options.server.embedded_registry or options.agent.embedded_registry):
        return ()
    mirrors = b'# written by kairos-p2p for the embedded registry\nmirrors:\n  "*": {}\n'
    return (FileSpec(f"{paths.config_dir}/registries.yaml", mirrors, keep=True),)


def paths_of(options: K3sOptions, role: Role, *, by_hand: bool = False) -> K3sPaths:
    """Where k3s keeps what in this role; the user may have moved its data. Raises RoleError as `build`."""
    if role == "agent":
        return _checked(options.agent, "k3s-agent", K3sPaths(), by_hand=by_hand)
    return _checked(options.server, "k3s", K3sPaths(), by_hand=by_hand)


def _server_config(
    config: dict[str, object], kind: StartKind, datastore: Datastore, join_ip: str, external_db: str
) -> None:
    match datastore:
        case "external":
            if not external_db:
                raise RoleError(
                    "the cluster keeps its state in an external database, but this node does not know it",
                    hint="set p2p.auto.ha.external_db on every node that may be a server",
                )
            config["datastore-endpoint"] = external_db
        case "sqlite":
            pass
        case "etcd":
            if kind == "server-init":
                config["cluster-init"] = True
            elif join_ip:
                config["server"] = api_url(join_ip)
            assert kind != "server-join" or join_ip, "a further server joins another one"


def _required(kind: StartKind, datastore: Datastore, join_ip: str, paths: K3sPaths) -> str:
    if kind != "server" or join_ip or datastore == "external":
        return ""
    data = "db/etcd/member/wal" if datastore == "etcd" else "db/state.db"
    return f"{paths.data_dir}/server/{data}"


def _conveniences(facts: NodeFacts, role: Role) -> dict[str, object]:
    config: dict[str, object] = {"node-name": facts.node_name} if facts.node_name else {}
    if facts.device:
        config["flannel-iface"] = facts.device
    if role == "server":
        names = [n for n in dict.fromkeys((facts.node_ip, facts.node_name, *facts.names)) if n]
        if names:
            config["tls-san+"] = names
    labels = [
        f"topology.kubernetes.io/{key}={_LABEL.sub('-', value).strip('-._')[:63]}"
        for key, value in (("region", facts.region), ("zone", facts.zone))
        if value
    ]
    if labels or facts.labels:
        config["node-label+"] = [*labels, *facts.labels]
    if facts.taints:
        config["node-taint+"] = list(facts.taints)
    return config


def _checked(section: SectionOptions, where: str, paths: K3sPaths, *, by_hand: bool = False) -> K3sPaths:
    """Refuse what is the genesis's, unless there is none; find the user's data directory."""
    data_dir = section.env.get("K3S_DATA_DIR", paths.data_dir)
    for name in section.env:
        if (flag := _OUR_ENV.get(name)) and not by_hand:
            raise _refused(f"{where}.env.{name}", _OURS[flag])
    words = list(section.args)
    for index, word in enumerate(words):
        flag, _, value = word.lstrip("-").partition("=")
        flag = _SHORT.get(flag, flag)
        if not word.startswith("-"):
            continue
        if flag in _OURS and not by_hand:
            raise _refused(f"{where}.args: {word.partition('=')[0]}", _OURS[flag])
        if flag == "data-dir":
            data_dir = value or (words[index + 1] if index + 1 < len(words) else "")
    if not data_dir.startswith("/"):
        raise RoleError(
            f"{where}: the data directory {data_dir!r} is not an absolute path", hint="write it from / on"
        )
    return K3sPaths(paths.config_dir, data_dir.rstrip("/"))


def _refused(what: str, why: str) -> RoleError:
    return RoleError(f"{what} cannot be set by hand: {why}", hint="remove it from the cloud-config")


def api_url(ip: str) -> str:
    """Where a server's API answers."""
    return f"https://[{ip}]:{API_PORT}" if ":" in ip else f"https://{ip}:{API_PORT}"


def node_name(hostname: str, suffix: str = "") -> str:
    """A Kubernetes node name (RFC 1123) from a host name, optionally with an id to make it unique."""
    name = re.sub(r"[^a-z0-9.-]+", "-", f"{hostname}-{suffix}".lower() if suffix else hostname.lower())
    return name[:253].strip("-.") or "node"


def cluster_wide_flags(options: K3sOptions) -> tuple[str, ...]:
    """The user's server arguments that must be equal on all servers, normalised as ``flag=value``."""
    flags: list[str] = []
    words = [*options.server.args, "--"]
    for word, following in itertools.pairwise(words):
        flag, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and _CLUSTER_WIDE.fullmatch(flag):
            if not equals:
                value = "true" if following.startswith("-") else following
            flags.append(f"{flag}={value}")
    if options.server.embedded_registry:
        flags.append("embedded-registry=true")
    return tuple(sorted(flags))


def render_yaml(config: Mapping[str, object]) -> str:
    """Deterministic YAML of scalars and lists of strings, in the order given."""
    lines = ["# written by kairos-p2p at every start of k3s; put your own settings into config.yaml"]
    for key, value in config.items():
        if isinstance(value, list):
            lines.append(f"{key}:")
            lines += [f"  - {_scalar(item)}" for item in value]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    """JSON is YAML but for characters beyond U+FFFF, where JSON writes two surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in text)
