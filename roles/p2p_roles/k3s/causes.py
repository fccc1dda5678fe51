"""What does k3s mean when it fails, and what is to be done?

k3s says why in its log, in words of its own. The table turns them into one sentence of ours that quotes
them, with a hint. The first entry that matches any line of the log's end wins; the newest such line is
quoted. `permanent` causes don't go away by starting again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Cause:
    """Why k3s failed.

    Attributes:
        error: one sentence.
        hint: what to do next.
        permanent: starting again cannot help.
        again: k3s goes on, but has to be started again to do its work.
    """

    error: str
    hint: str
    permanent: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    pattern: str  # lower case, as `in`
    meaning: str
    hint: str
    permanent: bool = False
    usual: bool = False  # also said by a k3s that is just starting up
    again: bool = False


TABLE: Final[tuple[_Entry, ...]] = (
    _Entry(
        "token ca hash does not match",
        "the server belongs to another cluster than the certified one",
        "compare the clusters with: kairos-p2p roles list; the node asks for a new join secret by itself",
    ),
    _Entry(
        "bootstrap data already found and encrypted with different token",
        "the datastore belongs to another cluster",
        "give this cluster a datastore of its own (p2p.auto.ha.external_db), or empty the old one",
        True,
    ),
    _Entry(
        "duplicate node name found",
        "another machine is in the cluster under this node's name",
        "give the machine another host name, or delete the old Node: kubectl delete node NAME",
    ),
    _Entry(
        "too many learner members",
        "another server is being added to etcd; they come in one at a time",
        "nothing: k3s tries again",
    ),
    _Entry(
        "unhealthy cluster",
        "etcd takes no new member while one of its members is down",
        "bring the servers that are down back, or delete their Nodes: kubectl delete node NAME",
    ),
    _Entry(
        "this server is not a member",
        "etcd does not know this server: its address changed, or it was removed",
        "if it was removed on purpose let it leave and join anew: kairos-p2p leave",
    ),
    _Entry(
        "node password rejected",
        "the cluster knows a machine of this name with another node password",
        "delete the old Node and its secret: kubectl delete node NAME; "
        "kubectl -n kube-system delete secret NAME.node-password.k3s",
    ),
    _Entry(
        "critical configuration",
        "options that must be equal on all servers differ",
        "make k3s.args equal on all servers (cluster-cidr, service-cidr, cluster-dns, disable, ...)",
        True,
    ),
    _Entry(
        "tombstone file has been detected but --server is empty",
        "this server was removed from etcd",
        "let it leave and join anew: kairos-p2p leave",
        True,
    ),
    _Entry(
        "this node has been removed from the cluster",
        "this server was removed from etcd",
        "nothing: it is started again to join anew, if it is still assigned as a server",
        again=True,
    ),
    _Entry(
        "address already in use",
        "a port that k3s needs is taken",
        "find who has it (ss -ltnp) and stop that program; another k3s: systemctl disable --now k3s",
    ),
    _Entry(
        "certificate has expired or is not yet valid",
        "the clocks of this machine and the server differ too much",
        "set the clock (timedatectl, or an NTP server)",
    ),
    _Entry(
        "no space left on device",
        "the disk is full",
        "free space below k3s's data directory",
    ),
    _Entry(
        "read-only file system",
        "k3s's data directory cannot be written",
        "make k3s's data directory a persistent, writable path",
        True,
    ),
    _Entry(
        "requires additional privilege",
        "k3s is not run as root",
        "run the agent as root",
        True,
    ),
    _Entry(
        "newer than datastore and could cause a cluster outage",
        "this server's files are newer than the cluster's: it was started with other tokens meanwhile",
        "move the files that it names away and start again; k3s fetches them from the cluster",
        True,
    ),
    _Entry(
        "token is required to join a cluster",
        "k3s was told whom to join but has no token",
        "nothing of yours: the node asks for a new join secret by itself",
    ),
    _Entry(
        "cluster data: not authorized",
        "the cluster does not accept this node's join secret",
        "the node asks for a new one by itself; if that does not help let it leave and join anew",
    ),
    _Entry(
        "cannot perform cluster-reset while server url is set",
        "a cluster is reset only without a server to join",
        "remove server: from k3s's configuration for the reset",
        True,
    ),
    _Entry(
        "cluster membership was previously reset",
        "this cluster was reset already",
        "start k3s without --cluster-reset; for another reset remove server/db/reset-flag first",
        True,
    ),
    _Entry(
        "flag provided but not defined",
        "k3s does not know an option",
        "correct k3s.args (or k3s-agent.args) in the cloud-config",
        True,
    ),
    _Entry(
        "find memory cgroup",
        "this kernel has no memory cgroup",
        "add cgroup_memory=1 cgroup_enable=memory to the kernel's command line",
        True,
    ),
    _Entry(
        "kubelet is configured to not run on a host using cgroup v1",
        "this machine runs cgroup v1, which the kubelet refuses",
        "boot with cgroup v2, or add --kubelet-arg=fail-cgroupv1=false to k3s.args",
        True,
    ),
    _Entry(
        "connection refused",
        "a server that k3s needs does not answer",
        "look at the servers: kairos-p2p roles list",
        usual=True,
    ),
    _Entry(
        "no route to host",
        "a server that k3s needs cannot be reached",
        "look at the VPN: kairos-p2p peers",
        usual=True,
    ),
)

_MAX_QUOTE_CHARS: Final = 200
_LOGRUS: Final = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_SEVERE: Final = re.compile(r"level=(?:fatal|error)|^[EF]\d{4} |\b(?:fatal|panic)\b", re.IGNORECASE)


def explain(log_tail: str, exit_code: int | None) -> Cause:
    """Why k3s ended, from the end of its log and its exit code (negative: a signal; None: unknown)."""
    found = known_cause(log_tail)
    if found is not None:
        return found
    severe = [line for line in log_tail.splitlines() if _SEVERE.search(line)]
    last = severe[-1:] or [line for line in log_tail.splitlines() if line.strip()][-1:]
    how = _how(exit_code)
    said = f': "{_quote(last[0])}"' if last else ", and said nothing"
    return Cause(f"k3s {how}{said}", "read the rest of its log")


def known_cause(log_tail: str, *, running: bool = False) -> Cause | None:
    """The cause that the table finds in the end of a log, if any.

    `running`: k3s has not ended; what every k3s says while it starts up is then no cause.
    """
    lines = log_tail.splitlines()
    lowered = [line.lower() for line in lines]
    for entry in TABLE:
        if entry.usual and running:
            continue
        for line, low in zip(reversed(lines), reversed(lowered), strict=True):
            if entry.pattern in low:
                said = f'{entry.meaning}; k3s says "{_quote(line)}"'
                return Cause(said, entry.hint, entry.permanent, entry.again)
    return None


def _quote(line: str) -> str:
    message = _LOGRUS.search(line)
    text = message[1].replace('\\"', "'") if message else _of_etcd(line) or line.strip()
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(r"K10[0-9a-f]{64}::\w+:\S+", "K10...", text)  # never pass a token on
    return text if len(text) <= _MAX_QUOTE_CHARS else text[: _MAX_QUOTE_CHARS - 3] + "..."


def _of_etcd(line: str) -> str:
    """What etcd's own log line, a JSON object, says; "" if it is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(said, dict):
        return ""
    return ": ".join(str(said[key]) for key in ("msg", "error") if said.get(key))


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "has ended"
    if exit_code < 0:
        return f"was ended by signal {-exit_code}"
    return f"exited with code {exit_code}"
