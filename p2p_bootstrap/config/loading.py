"""What does this node's configuration say? The way from files to one frozen `Config`.

Files are collected and merged (`cloudconfig`), checked field by field (`validation`) and against each
other (`checks`). Either everything is right, or one ConfigError carries every problem of every file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from p2p_bootstrap.cloudconfig import template
from p2p_bootstrap.cloudconfig.collect import Collected, collect, collect_system
from p2p_bootstrap.cloudconfig.nodes import Entry, MapNode, ScalarNode, Value, find, to_value
from p2p_bootstrap.cloudconfig.remote import Fetcher
from p2p_bootstrap.config import checks, validation
from p2p_bootstrap.config.model import P2P, K0s, K3s, K3sAgent, KubeVip
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.observe import observe
from p2p_bootstrap.stages.root import Root
from p2p_network.admission.join_token import JoinToken
from p2p_network.core.errors import ConfigError, Problem
from p2p_network.records import Wish
from p2p_network.token import NetworkToken


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration.

    Attributes:
        p2p, k3s, k3s_agent, kubevip: the sections; of one that isn't there, the defaults.
        hostname: with its template (``{{ … }}``) rendered for this machine; None if there is none, or if the
            template needs what this machine doesn't have (a note says so): its own name then counts.
        notes: what the operator should know although it is no error (key without effect, and the like).
        files: where it was read from, lowest precedence first.
        document: everything that was read, merged, with marks; also the keys that others act on.
        join_token: instead of a network token; None if none is written.
    """

    p2p: P2P
    k3s: K3s
    k3s_agent: K3sAgent
    kubevip: KubeVip
    hostname: str | None
    notes: tuple[Problem, ...]
    files: tuple[str, ...]
    document: MapNode = field(repr=False)
    _token: NetworkToken | None = field(repr=False)
    join_token: JoinToken | None = field(default=None, repr=False)

    @property
    def token(self) -> NetworkToken:
        """The parsed network token. Raises ConfigError if none is written."""
        if self._token is None:
            where = ", ".join(self.files) or "the configuration"
            raise ConfigError(
                [
                    Problem(
                        where,
                        0,
                        0,
                        "p2p.network_token",
                        "is not set, so there is no mesh to join",
                        "make a token with: kairos-p2p token generate",
                    )
                ]
            )
        return self._token

    @property
    def has_token(self) -> bool:
        """Whether a network token is written."""
        return self._token is not None

    @property
    def wish(self) -> Wish:
        """The role that the operator forces, or "auto"."""
        return self.p2p.role

    @property
    def declared_servers(self) -> int:
        """How many servers the cluster shall have: `servers`, else `auto.ha.master_nodes` + 1, else 1."""
        return self.p2p.declared_servers

    @property
    def minimum_nodes(self) -> int:
        """How many nodes must see each other before the genesis; see `P2P.nodes_before_genesis`."""
        return self.p2p.nodes_before_genesis

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Addresses to dial first: the cloud-config's, then the token's, each once."""
        token = self._token or self.join_token
        return tuple(dict.fromkeys((*self.p2p.bootstrap, *(token.bootstrap if token else ()))))

    @property
    def dht(self) -> bool:
        """Whether to use the DHT: token and cloud-config must both allow it."""
        token = self._token or self.join_token
        return self.p2p.dht and (token is None or token.dht)

    @property
    def mdns(self) -> bool:
        """Whether to look for nodes on the local network: the token says so."""
        token = self._token or self.join_token
        return token is None or token.mdns

    def origin(self, key: str) -> tuple[str, int] | None:
        """File and line that set a dotted key (``p2p.vpn.mtu``); None if it is a default."""
        entry = _entry(self.document, key)
        return (entry.mark.file, entry.mark.line) if entry else None

    def value(self, key: str) -> Value:
        """What is written at a dotted key, also of sections that others act on; None if nothing."""
        entry = _entry(self.document, key)
        return to_value(entry.value) if entry else None


def load(paths: Sequence[Path], *, stdin: str | None = None) -> Config:
    """Read a configuration.

    Args:
        paths: files and directories, lowest precedence first; ``Path("-")`` is `stdin`.
        stdin: text of standard input.

    Raises:
        ConfigError: with every problem of every file.
    """
    collected = collect(paths, stdin=stdin)
    config, problems = check(collected, stages=False)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def load_system(fetch: Fetcher | None, root: Path = Path("/")) -> Config:
    """Read what a booted machine has: its folders, its command line, and what `config_url` names.

    Raises ConfigError with every problem; one of them is an address that could not be fetched.
    """
    config, problems = check(collect_system(root, fetch=fetch), stages=False)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def check(
    collected: Collected, *, stages: bool = True, facts: Callable[[], Facts] | None = None
) -> tuple[Config | None, tuple[Problem, ...]]:
    """Check what was collected. Returns the configuration, if there is one, and all problems.

    Args:
        stages: whether a mistake in a step is a problem. For the agent it is a note: a node whose user's
            file has a typo still joins its mesh, and ``stage run`` reports the step that did not run.
        facts: of this machine, for the host name's template; None: look at it.
    """
    root = collected.root
    problems = [*collected.problems, *validation.unknown_top_level(root), *checks.moved(root)]
    models, found = validation.validate_sections(root)
    _, wrong_steps, step_remarks = validation.validate_stages(root, collected.files, collected.names)
    if stages:
        problems += wrong_steps
    else:
        step_remarks += wrong_steps
    hostname, bad_name, name_remarks = _hostname(root, facts)
    token, join_token, bad_token = validation.validate_tokens(
        root, _token_text(root, "network_token"), _token_text(root, "join_token")
    )
    problems += [*found, *bad_name, *bad_token]
    if "p2p" in models and "k3s" in models:
        problems += checks.contradictions(root, cast(P2P, models["p2p"]), cast(K3s, models["k3s"]))
    for section in ("k0s", "k0s-worker"):
        if section in models:
            problems += checks.unsupported(root, section, cast(K0s, models[section]))
    if "kubevip" in models:
        problems += checks.kubevip_problems(root, cast(KubeVip, models["kubevip"]))
    if problems:
        return None, tuple(sorted(set(problems)))
    p2p, kubevip = cast(P2P, models["p2p"]), cast(KubeVip, models["kubevip"])
    notes = (*collected.remarks, *checks.remarks(root, p2p, kubevip), *step_remarks, *name_remarks)
    config = Config(
        p2p=p2p,
        k3s=cast(K3s, models["k3s"]),
        k3s_agent=cast(K3sAgent, models["k3s-agent"]),
        kubevip=kubevip,
        hostname=hostname,
        notes=tuple(sorted(notes)),
        files=collected.files,
        document=root,
        _token=token,
        join_token=join_token,
    )
    return config, ()


def _hostname(
    root: MapNode, facts: Callable[[], Facts] | None
) -> tuple[str | None, list[Problem], list[Problem]]:
    """The host name, rendered; problems; remarks."""
    written, problems = validation.validate_hostname(root)
    node = root.get("hostname")
    if written is None or not isinstance(node, ScalarNode) or not template.has_template(written):
        return written, problems, []
    mark = node.mark
    try:
        parsed = template.parse(written, file=mark.file, line=mark.line, column=mark.column, key="hostname")
    except ConfigError as exc:
        return None, list(exc.problems), []
    machine = facts() if facts else observe(Root(Path("/")))
    try:
        name = template.render(parsed, machine.template_data()).strip()
    except ConfigError as exc:
        return None, [], list(exc.problems)  # the machine lacks a value: its own name counts
    rendered = MapNode({"hostname": Entry(mark, ScalarNode(name, mark))}, mark)
    name_or_none, problems = validation.validate_hostname(rendered)
    return name_or_none, problems, []


def _token_text(root: MapNode, name: str) -> str | None:
    """A token as written, also when another key of the section is wrong."""
    node = find(root, ("p2p", name))
    return node.text if isinstance(node, ScalarNode) and not node.is_null else None


def _entry(root: MapNode, key: str) -> Entry | None:
    """The entry of a dotted key; a key may itself contain dots, such as a stage's ``boot.after``."""
    if (entry := root.entries.get(key)) is not None:
        return entry
    for name, entry in root.entries.items():
        if key.startswith(name + ".") and isinstance(entry.value, MapNode):
            inner = _entry(entry.value, key[len(name) + 1 :])
            if inner is not None:
                return inner
    return None
