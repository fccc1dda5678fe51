"""What was asked for: argument vector, environment and configuration files become settings.

As k3s does it: the files' keys become flags placed before those of the command line, so that a later
scalar wins and lists add up; an environment variable is only a default. Which flags exist is data: the
tables below list all of k3s's, since "unknown flag" is one of the failures worth standing in for. Most
change nothing here, as they change nothing that another process could see of a k3s without containers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2p_simulations.k3s.errors import K3sError

DEFAULT_DATA_DIR = "/var/lib/rancher/k3s"

_COMMON = """
config,c str K3S_CONFIG_FILE
debug bool K3S_DEBUG
v int
vmodule str
log,l str
alsologtostderr bool
bind-address str
token,t str K3S_TOKEN
token-file str K3S_TOKEN_FILE
server,s str K3S_URL
data-dir,d str K3S_DATA_DIR
node-name str K3S_NODE_NAME
with-node-id bool
node-label list
node-taint list
image-credential-provider-bin-dir str
image-credential-provider-config str
selinux bool K3S_SELINUX
lb-server-port int K3S_LB_SERVER_PORT
protect-kernel-defaults bool
container-runtime-endpoint str
default-runtime str
image-service-endpoint str
pause-image str
snapshotter str
private-registry str
disable-default-registry-endpoint bool
nonroot-devices bool
airgap-extra-registry list
node-ip,i list
node-external-ip list
node-internal-dns list
node-external-dns list
resolv-conf str K3S_RESOLV_CONF
flannel-iface str
flannel-conf str
flannel-cni-conf str
kubelet-arg list
kube-proxy-arg list
enable-pprof bool
rootless bool
prefer-bundled-bin bool
docker bool
vpn-auth str K3S_VPN_AUTH
vpn-auth-file str K3S_VPN_AUTH_FILE
"""

_AGENT_ONLY = """
disable-apiserver-lb bool
"""

_SERVER_ONLY = """
https-listen-port int
supervisor-port int K3S_SUPERVISOR_PORT
apiserver-port int K3S_APISERVER_PORT
apiserver-bind-address str K3S_APISERVER_BIND_ADDRESS
advertise-address str
advertise-port int
tls-san list
tls-san-security bool
cluster-cidr list
service-cidr list
service-node-port-range str
cluster-dns list
cluster-domain str
flannel-backend str
flannel-ipv6-masq bool
flannel-external-ip bool
egress-selector-mode str
servicelb-namespace str
write-kubeconfig,o str K3S_KUBECONFIG_OUTPUT
write-kubeconfig-mode str K3S_KUBECONFIG_MODE
write-kubeconfig-group str K3S_KUBECONFIG_GROUP
write-kubeconfig-name str K3S_KUBECONFIG_NAME
helm-job-image str
agent-token str K3S_AGENT_TOKEN
agent-token-file str K3S_AGENT_TOKEN_FILE
cluster-init bool K3S_CLUSTER_INIT
cluster-reset bool K3S_CLUSTER_RESET
cluster-reset-restore-path str
kube-apiserver-arg list
etcd-arg list
kube-controller-manager-arg list
kube-scheduler-arg list
helm-controller-arg list
kube-cloud-controller-manager-arg list
kine-tls bool
datastore-endpoint str K3S_DATASTORE_ENDPOINT
datastore-cafile str K3S_DATASTORE_CAFILE
datastore-certfile str K3S_DATASTORE_CERTFILE
datastore-keyfile str K3S_DATASTORE_KEYFILE
etcd-expose-metrics bool
etcd-disable-snapshots bool
etcd-snapshot-name str
etcd-snapshot-schedule-cron str
etcd-snapshot-reconcile-interval str
etcd-snapshot-retention int
etcd-snapshot-dir str
etcd-snapshot-compress bool
etcd-s3 bool
etcd-s3-endpoint str
etcd-s3-endpoint-ca str
etcd-s3-skip-ssl-verify bool
etcd-s3-access-key str AWS_ACCESS_KEY_ID
etcd-s3-secret-key str AWS_SECRET_ACCESS_KEY
etcd-s3-session-token str AWS_SESSION_TOKEN
etcd-s3-bucket str
etcd-s3-bucket-lookup-type str
etcd-s3-region str
etcd-s3-folder str
etcd-s3-retention int
etcd-s3-proxy str
etcd-s3-config-secret str
etcd-s3-insecure bool
etcd-s3-timeout str
default-local-storage-path str
disable list
disable-scheduler bool
disable-cloud-controller bool
disable-kube-proxy bool
disable-network-policy bool
disable-helm-controller bool
disable-apiserver bool
disable-controller-manager bool
disable-etcd bool
embedded-registry bool
supervisor-metrics bool
system-default-registry str K3S_SYSTEM_DEFAULT_REGISTRY
secrets-encryption bool
secrets-encryption-provider str
disable-agent bool
kube-controller-arg list
kube-cloud-controller-arg list
"""

_SNAPSHOT = """
debug bool K3S_DEBUG
config,c str K3S_CONFIG_FILE
log,l str
alsologtostderr bool
node-name str K3S_NODE_NAME
data-dir,d str K3S_DATA_DIR
etcd-token,t str
etcd-server,s str
dir,etcd-snapshot-dir str
name,etcd-snapshot-name str
snapshot-compress,etcd-snapshot-compress bool
snapshot-retention,etcd-snapshot-retention int
output,o str
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """`names`: the first is the canonical one. `kind`: str, int, bool or list."""

    names: tuple[str, ...]
    kind: str
    env: str = ""


def _table(*texts: str) -> dict[str, Flag]:
    flags = {}
    for line in "".join(texts).split("\n"):
        if words := line.split():
            flag = Flag(tuple(words[0].split(",")), words[1], words[2] if len(words) > 2 else "")
            flags.update(dict.fromkeys(flag.names, flag))
    return flags


FLAGS: dict[str, dict[str, Flag]] = {
    "server": _table(_COMMON, _SERVER_ONLY),
    "agent": _table(_COMMON, _AGENT_ONLY),
    "etcd-snapshot": _table(_SNAPSHOT),
}

_DEFAULTS: dict[str, Any] = {
    "data-dir": DEFAULT_DATA_DIR,
    "lb-server-port": 6444,
    "https-listen-port": 6443,
    "cluster-domain": "cluster.local",
    "cluster-cidr": ["10.42.0.0/16"],
    "service-cidr": ["10.43.0.0/16"],
    "cluster-dns": [],
    "flannel-backend": "vxlan",
    "egress-selector-mode": "agent",
    "secrets-encryption-provider": "aescbc",
    "write-kubeconfig-name": "default",
    "write-kubeconfig-mode": "600",
    "etcd-snapshot-name": "etcd-snapshot",
    "snapshot-retention": 5,
    "name": "on-demand",
}

_ZERO: dict[str, Any] = {"str": "", "int": 0, "bool": False, "list": []}


@dataclass(frozen=True, slots=True)
class Settings:
    """All values by canonical flag name; `given` are those that somebody set; `rest` follows the flags."""

    command: str
    values: Mapping[str, Any]
    given: frozenset[str]
    rest: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        return str(self.values[name])

    def number(self, name: str) -> int:
        return int(self.values[name])

    def on(self, name: str) -> bool:
        return bool(self.values[name])

    def words(self, name: str) -> list[str]:
        """A list flag, also split at commas where k3s splits (addresses and networks)."""
        return [part.strip() for value in self.values[name] for part in value.split(",") if part.strip()]

    def items(self, name: str) -> list[str]:
        return list(self.values[name])

    def component(self, list_name: str, key: str) -> str | None:
        """The last value of `key=value` in a list of component flags such as `etcd-arg`."""
        pairs = (item.lstrip("-").partition("=") for item in reversed(self.values[list_name]))
        return next((value for name, _, value in pairs if name == key), None)


def settings(
    command: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    read_config: Callable[[str], list[tuple[str, Mapping[Any, Any]]]],
    default_config: str,
) -> Settings:
    """Parse.

    Args:
        argv: what follows the command's name.
        read_config: for the path of the main file: (path, document) of it and of its drop-ins, sorted.

    Raises:
        K3sError: with k3s's text.
    """
    table = FLAGS[command]
    from_files: list[str] = []
    warnings: list[str] = []
    if command in ("server", "agent", "etcd-snapshot"):
        from_files = _config_arguments(read_config(_config_path(argv, env, default_config)))
        if command != "agent":  # k3s gives an agent every key, so there an unknown one ends it
            kept = []
            for argument in from_files:
                name = argument.lstrip("-").partition("=")[0]
                if name in table:
                    kept.append(argument)
                else:
                    warnings.append(
                        f"Unknown flag {argument.partition('=')[0]} found in config.yaml, skipping\n"
                    )
            from_files = kept
    values: dict[str, Any] = {}
    rest = _parse(table, [*from_files, *argv], values)
    given = set(values)
    for flag in table.values():
        name = flag.names[0]
        if name not in values and flag.env and env.get(flag.env):
            _set(flag, name, env[flag.env], values)
            given.add(name)
        if name not in values:
            default = _DEFAULTS.get(name, _ZERO[flag.kind])
            values[name] = list(default) if isinstance(default, list) else default
    return Settings(command, values, frozenset(given), tuple(rest), tuple(warnings))


def _config_path(argv: Sequence[str], env: Mapping[str, str], default: str) -> str:
    if env.get("K3S_CONFIG_FILE"):
        return env["K3S_CONFIG_FILE"]
    for position, argument in enumerate(argv):
        if argument in ("--config", "-c"):
            return argv[position + 1] if position + 1 < len(argv) else ""
        for prefix in ("--config=", "-c="):
            if argument.startswith(prefix):
                return argument.removeprefix(prefix)
    return default


def _config_arguments(documents: list[tuple[str, Mapping[Any, Any]]]) -> list[str]:
    merged: dict[str, Any] = {}
    for _, document in documents:
        for raw_key, value in document.items():
            key = _as_text(raw_key)
            if key.endswith("+"):
                key = key.removesuffix("+")
                if key in merged:
                    merged[key] = _as_list(merged[key]) + _as_list(value)
                    continue
            merged[key] = value
    arguments = []
    for key, value in merged.items():
        dashes = "-" if len(key) == 1 else "--"
        for item in value if isinstance(value, list) else [value]:
            arguments.append(f"{dashes}{key}={_as_text(item)}")
    return arguments


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    text = _as_text(value).strip()
    return [text] if text else []


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_FLAG = re.compile(r"--?([^-=][^=]*)(?:=(.*))?", re.DOTALL)


def _parse(table: dict[str, Flag], arguments: Sequence[str], values: dict[str, Any]) -> list[str]:
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":
            return list(arguments[position:])
        found = _FLAG.fullmatch(argument)
        if found is None:
            return [argument, *arguments[position:]]
        name, value = found[1], found[2]
        flag = table.get(name)
        if flag is None:
            raise K3sError(f"flag provided but not defined: -{name}")
        if value is None and flag.kind == "bool":
            value = "true"
        elif value is None:
            if position == len(arguments):
                raise K3sError(f"flag needs an argument: -{name}")
            value = arguments[position]
            position += 1
        _set(flag, name, value, values)
    return []


_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def _set(flag: Flag, name: str, value: str, values: dict[str, Any]) -> None:
    canonical = flag.names[0]
    if flag.kind == "list":
        values.setdefault(canonical, []).append(value)
    elif flag.kind == "bool":
        if value not in _TRUE | _FALSE:
            raise K3sError(f'invalid boolean value "{value}" for -{name}: parse error')
        values[canonical] = value in _TRUE
    elif flag.kind == "int":
        try:
            values[canonical] = int(value, 0)
        except ValueError:
            raise K3sError(f'invalid value "{value}" for flag -{name}: parse error') from None
    else:
        values[canonical] = value
