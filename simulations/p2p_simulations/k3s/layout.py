"""Where does k3s keep what? Paths below the data dir, and what a server decides once about itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from p2p_simulations.k3s.errors import K3sError
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.process import etc_dir

BOOTSTRAP_FILES = {
    "ETCDServerCA": "tls/etcd/server-ca.crt",
    "ETCDServerCAKey": "tls/etcd/server-ca.key",
    "ETCDPeerCA": "tls/etcd/peer-ca.crt",
    "ETCDPeerCAKey": "tls/etcd/peer-ca.key",
    "ServerCA": "tls/server-ca.crt",
    "ServerCAKey": "tls/server-ca.key",
    "ClientCA": "tls/client-ca.crt",
    "ClientCAKey": "tls/client-ca.key",
    "ServiceKey": "tls/service.key",
    "PasswdFile": "cred/passwd",
    "RequestHeaderCA": "tls/request-header-ca.crt",
    "RequestHeaderCAKey": "tls/request-header-ca.key",
    "IPSECKey": "cred/ipsec.psk",
}
"""What a joining server is given, by the names of k3s's protocol: files below `server/`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one node."""

    data_dir: Path

    @property
    def server(self) -> Path:
        return self.data_dir / "server"

    @property
    def tls(self) -> Path:
        return self.server / "tls"

    @property
    def agent(self) -> Path:
        return self.data_dir / "agent"

    @property
    def etcd(self) -> Path:
        return self.server / "db" / "etcd"

    @property
    def wal(self) -> Path:
        return self.etcd / "member" / "wal"

    @property
    def sqlite(self) -> Path:
        return self.server / "db" / "state.db"

    @property
    def reset_flag(self) -> Path:
        return self.server / "db" / "reset-flag"

    @property
    def passwd(self) -> Path:
        return self.server / "cred" / "passwd"

    @property
    def node_password(self) -> Path:
        return etc_dir() / "node" / "password"

    def is_etcd(self) -> bool:
        """Was etcd ever started here? Then it is etcd for ever."""
        return self.wal.is_dir()


@dataclass(frozen=True, slots=True)
class Machine:
    """Name and addresses as k3s finds them."""

    name: str
    addresses: tuple[str, ...]
    external_addresses: tuple[str, ...]


def machine(settings: Settings) -> Machine:
    """Raises K3sError with k3s's text if an address is none, or none was given and there is no route."""
    addresses = settings.words("node-ip")
    for text in addresses:
        try:
            ip_address(text)
        except ValueError:
            raise K3sError(f"invalid node-ip: invalid ip format '{text}'") from None
    if not addresses and settings.text("flannel-iface"):
        addresses = [_interface_address(settings.text("flannel-iface"))]
    if not addresses:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect(("198.51.100.1", 9))  # asks the routing table; nothing is sent
                addresses = [sock.getsockname()[0]]
            except OSError:
                raise K3sError("unable to select an IP from default routes.") from None
    name = (settings.text("node-name") or socket.gethostname()).lower()
    if settings.on("with-node-id"):
        id_file = etc_dir() / "node" / "id"
        if not id_file.exists():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(os.urandom(4).hex() + "\n")
        name = f"{name}-{id_file.read_text().strip()}"
    return Machine(name, tuple(addresses), tuple(settings.words("node-external-ip")))


def _interface_address(device: str) -> str:
    """The first IPv4 address of a device. Raises K3sError."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(
                sock.fileno(), 0x8915, struct.pack("256s", device.encode()[:15])
            )  # SIOCGIFADDR
        except OSError as exc:
            raise K3sError(f"failed to find interface {device}: {exc.strerror}") from exc
    return socket.inet_ntoa(answer[20:24])


def _networks(values: Sequence[str], flag: str) -> list[str]:
    try:
        return [str(ip_network(value, strict=False)) for value in values]
    except ValueError:
        raise K3sError(f"invalid {flag} {','.join(values)}: invalid CIDR address") from None


CRITICAL = {
    "ClusterDNSs": "cluster-dns",
    "ClusterIPRanges": "cluster-cidr",
    "ClusterDomain": "cluster-domain",
    "DisableCCM": "disable-cloud-controller",
    "DisableHelmController": "disable-helm-controller",
    "DisableNPC": "disable-network-policy",
    "DisableServiceLB": "disable-service-lb",
    "EncryptSecrets": "secrets-encryption",
    "EncryptProvider": "secrets-encryption-provider",
    "EmbeddedRegistry": "embedded-registry",
    "FlannelBackend": "flannel-backend",
    "FlannelIPv6Masq": "flannel-ipv6-masq",
    "FlannelExternalIP": "flannel-external-ip",
    "EgressSelectorMode": "egress-selector-mode",
    "ServiceIPRanges": "service-cidr",
    "SupervisorMetrics": "supervisor-metrics",
}
"""What all servers must agree on: field of `/v1-k3s/config`, and the flag that k3s names in its warning."""


def critical(settings: Settings) -> dict[str, Any]:
    """This server's values of `CRITICAL`. Raises K3sError on a value that k3s refuses."""
    if settings.text("egress-selector-mode") not in ("agent", "cluster", "pod", "disabled"):
        raise K3sError(f"invalid egress-selector-mode {settings.text('egress-selector-mode')}")
    services = _networks(settings.words("service-cidr"), "service-cidr")
    dns = settings.words("cluster-dns") or [str(ip_network(services[0])[10])]
    return {
        "ClusterDNSs": dns,
        "ClusterIPRanges": _networks(settings.words("cluster-cidr"), "cluster-cidr"),
        "ClusterDomain": settings.text("cluster-domain"),
        "DisableCCM": settings.on("disable-cloud-controller"),
        "DisableHelmController": settings.on("disable-helm-controller"),
        "DisableNPC": settings.on("disable-network-policy"),
        "DisableServiceLB": "servicelb" in settings.words("disable"),
        "EncryptSecrets": settings.on("secrets-encryption"),
        "EncryptProvider": settings.text("secrets-encryption-provider"),
        "EmbeddedRegistry": settings.on("embedded-registry"),
        "FlannelBackend": settings.text("flannel-backend"),
        "FlannelIPv6Masq": settings.on("flannel-ipv6-masq"),
        "FlannelExternalIP": settings.on("flannel-external-ip"),
        "EgressSelectorMode": settings.text("egress-selector-mode"),
        "ServiceIPRanges": services,
        "SupervisorMetrics": settings.on("supervisor-metrics"),
    }
