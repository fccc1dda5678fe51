"""Hosts for k3s on one machine: a network namespace each, and a private /etc/rancher and /var/lib/rancher.

What `conftest.py` makes fixtures of: a `Host` starts, kills and unplugs a k3s, and is a client of its API.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

STAND_IN = [sys.executable, "-m", "p2p_simulations.k3s"]
FAST = {
    "etcd-arg": ["heartbeat-interval=150", "election-timeout=1500"],
    "kube-controller-manager-arg": ["node-monitor-grace-period=2s"],
    "kubelet-arg": ["node-status-update-frequency=500ms"],
}

CONTROL_PLANE = ("--disable-agent", "--flannel-backend=none", "--egress-selector-mode=disabled")


def real_k3s() -> list[str]:
    path = os.environ.get("K3S_BIN") or shutil.which("k3s")
    if not path:
        return []
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return [] if "simulated" in version else [path]


def no_namespaces() -> str:
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if not shutil.which("ip"):
        return "needs the ip program (iproute2)"
    probe = f"k3s-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.decode().strip()}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def eventually(
    what: str, condition: Callable[[], Any], within_s: float = 60.0, *, log_of: Host | None = None
) -> Any:
    """The first true value of `condition`; fails with its last error if there is none in time."""
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except (OSError, AssertionError, KeyError, ValueError, http.client.HTTPException) as exc:
            last = exc
        time.sleep(0.05)
    tail = f"\n{log_of.log[-3000:]}" if log_of else ""
    pytest.fail(f"not within {within_s} s: {what} (last: {last!r}){tail}")


@dataclass
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Host:
    """A machine of its own as far as k3s can see."""

    name: str
    address: str
    namespace: str
    folder: Path
    binary: list[str]
    switch: str
    process: subprocess.Popen[bytes] | None = None
    env: dict[str, str] = field(default_factory=dict)
    role: str = ""

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def data(self) -> Path:
        return self.folder / "lib" / "k3s"

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    @property
    def simulated(self) -> bool:
        return self.binary == STAND_IN

    @property
    def token(self) -> str:
        return (self.data / "server" / "token").read_text().strip()

    @property
    def url(self) -> str:
        return f"https://{self.address}:6443"

    def configure(self, *, name: str = "config.yaml", **keys: Any) -> None:
        """Write `config.yaml`; underscores in keys are hyphens."""
        document = {"node-ip": self.address, "node-name": self.name}
        document |= {key.replace("_", "-"): value for key, value in keys.items()}
        folder = self.etc / "k3s"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(document))

    def command(self, arguments: list[str]) -> list[str]:
        """The command line that runs k3s on this host, with its own /etc/rancher and /var/lib/rancher."""
        mounts = (
            f"mount --bind {self.etc} /etc/rancher && mount --bind {self.folder / 'lib'} /var/lib/rancher "
            '&& cd / && exec "$@"'
        )
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", mounts, "sh", *self.binary, *arguments]

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("K3S_")}
        return kept | {"K3S_SIMULATED_PROMOTION_TICK_S": "0.2"} | self.env

    def run(self, *arguments: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(list(arguments)),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, role: str = "server", *arguments: str) -> None:
        assert self.process is None or self.process.poll() is not None, "already running"
        if role == "server" and not self.simulated:
            arguments = (*arguments, *CONTROL_PLANE)
        self.role = role
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command([role, *arguments]), env=self._environment(), stdout=log, stderr=log
            )

    def kill(self, number: int = signal.SIGKILL) -> int:
        """The exit status (negative: the signal)."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def wait(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def plug(self, *, up: bool) -> None:
        """The cable to the switch."""
        ip("-n", self.switch, "link", "set", f"p-{self.name}", "up" if up else "down")

    # ---- as a client on this host

    def open_socket(self) -> socket.socket:
        made: list[socket.socket] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.namespace}", "rb") as handle:
                assert libc.setns(handle.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
            made.append(socket.socket())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return made[0]

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        raw: bytes | None = None,
        password: str = "",
        user: str = "server",
        port: int = 6443,
        headers: dict[str, str] | None = None,
        admin: bool = False,
    ) -> Answer:
        """One HTTPS request to this host's own k3s."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sent = dict(headers or {})
        if admin:
            tls = self.data / "server" / "tls"
            context = ssl.create_default_context(cafile=str(tls / "server-ca.crt"))
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.load_cert_chain(tls / "client-admin.crt", tls / "client-admin.key")
        if password:
            sent["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=15)
        stream = self.open_socket()
        stream.settimeout(15)
        content = raw if body is None else json.dumps(body).encode()
        try:
            stream.connect(("127.0.0.1", port))
            connection.sock = context.wrap_socket(stream, server_hostname="127.0.0.1")
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()
            stream.close()

    def api(self, path: str, *, method: str = "GET", body: Any = None) -> Answer:
        """As the cluster's admin."""
        return self.request(path, method=method, body=body, admin=True)

    def ready(self) -> bool:
        return self.api("/readyz").status == 200

    def nodes(self) -> dict[str, str]:
        """Ready condition by node."""
        items = self.api("/api/v1/nodes").json()["items"]
        return {
            item["metadata"]["name"]: next(
                c["status"] for c in item["status"]["conditions"] if c["type"] == "Ready"
            )
            for item in items
        }

    def members(self) -> dict[str, dict[str, Any]]:
        """etcd members by node name."""
        members = self.request("/db/info").json()["members"]
        return {m.get("name", "").rpartition("-")[0]: m for m in members}


class Hosts:
    """Makes hosts on one switch."""

    _numbers = itertools.count(1)

    def __init__(self, folder: Path, binary: list[str]) -> None:
        self.folder = folder
        self.binary = binary
        self.prefix = f"k3s{os.getpid()}x{next(self._numbers)}"
        self.switch = f"{self.prefix}-sw"
        self.all: list[Host] = []
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")

    def add(self, name: str) -> Host:
        number = len(self.all) + 1
        namespace = f"{self.prefix}-{number}"
        folder = self.folder / name
        for part in ("etc", "lib"):
            (folder / part).mkdir(parents=True)
        ip("netns", "add", namespace)
        port = f"p-{name}"
        ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", namespace, "address", "add", f"10.98.0.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", device, "up")
        host = Host(name, f"10.98.0.{number}", namespace, folder, self.binary, self.switch)
        self.all.append(host)
        return host

    def close(self) -> None:
        for host in self.all:
            if host.process is not None:
                host.kill()
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)
        subprocess.run(["ip", "netns", "del", self.switch], check=False)
