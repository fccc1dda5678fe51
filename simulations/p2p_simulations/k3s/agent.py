"""How does a node become part of a cluster, and stay it?

The agent of a worker and the one inside every server: validate the token, prove the node's password, have
certificates signed, register the Node, and renew its lease. It never gives up: whatever fails is logged in
k3s's words and tried again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import platform
import random
from collections.abc import Callable
from pathlib import Path

from p2p_simulations.k3s import https, kubeapi, log, objects, pki, timing
from p2p_simulations.k3s.access import Access, validate
from p2p_simulations.k3s.balancer import Balancer
from p2p_simulations.k3s.errors import HttpError, K3sError
from p2p_simulations.k3s.flags import Settings
from p2p_simulations.k3s.https import Request, RequestFailed, Response
from p2p_simulations.k3s.layout import Layout, Machine
from p2p_simulations.k3s.process import write_file
from p2p_simulations.k3s.state import Object


class Agent:
    """One node's agent.

    Args:
        url: of the server as configured; `balancer` None on a server, which talks to itself.
        extra: labels and annotations that only a server's node has.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: Layout,
        machine: Machine,
        url: str,
        token: str,
        balancer: Balancer | None,
        extra: Callable[[], tuple[dict[str, str], dict[str, str]]] | None = None,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._machine = machine
        self._url = url
        self._token = token
        self._balancer = balancer
        self._extra: Callable[[], tuple[dict[str, str], dict[str, str]]] = extra or (lambda: ({}, {}))
        self._access: Access | None = None
        self._health: asyncio.Server | None = None
        frequency = settings.component("kubelet-arg", "node-status-update-frequency")
        self._frequency_s = timing.seconds(frequency) if frequency else timing.NODE_STATUS_S

    @property
    def _base_url(self) -> str:
        return self._balancer.local_url if self._balancer else self._url

    async def join(self) -> None:
        """Until this node has its certificates; loops over every failure, as k3s does."""
        while self._access is None:
            try:
                self._access = await validate(self._base_url, self._token, "node")
            except K3sError as exc:
                log.error(f"Failed to validate connection to cluster at {self._url}: {exc}")
                self._distrust()
                await asyncio.sleep(timing.CONNECT_RETRY_S)
        while True:
            try:
                await self._certificates(self._access)
                return
            except (HttpError, RequestFailed, OSError, RuntimeError) as exc:
                log.info(f"Waiting to retrieve agent configuration; server is not ready: {exc}")
                self._distrust()
                await asyncio.sleep(timing.CONFIG_RETRY_S * (1 + random.random()))

    async def run(self) -> None:
        """Register and keep the lease; never returns."""
        self._health = await https.serve(_healthz, ["127.0.0.1"], 10248, None)
        await self._register()
        task = asyncio.create_task(self._learn_servers()) if self._balancer else None
        try:
            while True:
                try:
                    await self._heartbeat()
                    await asyncio.sleep(self._frequency_s)
                except (HttpError, RequestFailed) as exc:
                    log.error(f"Unable to update node status: {exc}")
                    self._distrust()
                    await asyncio.sleep(min(1.0, self._frequency_s))
        finally:
            if task:
                task.cancel()

    def close(self) -> None:
        if self._health:
            self._health.close()
        if self._balancer:
            self._balancer.close()

    def _distrust(self) -> None:
        if self._balancer:
            self._balancer.distrust()

    # ---- certificates

    async def _certificates(self, access: Access) -> None:
        agent = self._layout.agent
        await access.request("/v1-k3s/config")
        for name in ("client-ca.crt", "server-ca.crt"):
            write_file(agent / name, await access.request(f"/v1-k3s/{name}"))
        password = _node_password(self._layout.node_password)
        wanted = {
            "client-kubelet": agent / "client-kubelet.key",
            "serving-kubelet": agent / "serving-kubelet.key",
        }
        keys = {"op": "requests", "keys": [str(path) for path in wanted.values()]}
        requests = await asyncio.to_thread(pki.ask, keys)
        headers = {
            "k3s-Node-Name": self._machine.name,
            "k3s-Node-Password": password,
            "k3s-Node-IP": ",".join((*self._machine.addresses, *self._machine.external_addresses)),
        }
        for name, key in wanted.items():
            csr = base64.b64decode(requests[str(key)])
            try:
                chain = await access.request(f"/v1-k3s/{name}.crt", method="POST", body=csr, headers=headers)
            except HttpError as exc:
                if exc.status == 403:
                    raise HttpError(
                        403,
                        f"{agent / name}.crt: Node password rejected, duplicate hostname or contents of "
                        f"'{self._layout.node_password}' may not match server node-passwd entry, "
                        "try enabling a unique node name with the --with-node-id flag",
                    ) from None
                raise HttpError(exc.status, f"{agent / name}.crt: {exc}") from None
            write_file(agent / f"{name}.crt", chain)
        write_file(agent / "kubelet.kubeconfig", _kubeconfig(self._base_url, agent))

    # ---- the Node

    async def _call(self, method: str, path: str, body: Object | None = None) -> Object:
        agent = self._layout.agent
        context = https.client_context(
            str(agent / "server-ca.crt"),
            cert=str(agent / "client-kubelet.crt"),
            key=str(agent / "client-kubelet.key"),
        )
        raw = json.dumps(body).encode() if body is not None else b""
        reply = await https.request(method, self._base_url + path, context, body=raw)
        try:
            answer: Object = reply.json()
        except ValueError:
            raise HttpError(reply.status, f"{path}: {reply.status}") from None
        if reply.status >= 300:
            raise HttpError(reply.status, str(answer.get("message", reply.status)))
        return answer

    async def _register(self) -> None:
        """Create the Node, or take over the one of our name; loops until done."""
        while True:
            try:
                await self._put_node()
                log.info(f"Annotations and labels have been set successfully on node: {self._machine.name}")
                return
            except (HttpError, RequestFailed) as exc:
                log.info(f"Failed to set annotations and labels on node {self._machine.name}: {exc}")
                self._distrust()
                await asyncio.sleep(0.5)

    async def _put_node(self) -> None:
        path = f"/api/v1/nodes/{self._machine.name}"
        labels, annotations = self._extra()
        fresh = objects.node(_facts(self._settings, self._machine), kubeapi.now_text())
        fresh["metadata"]["annotations"] |= annotations
        try:
            stored = await self._call("GET", path)
        except HttpError as exc:
            if exc.status != 404:
                raise
            fresh["metadata"]["labels"] |= labels
            await self._call("POST", "/api/v1/nodes", fresh)
            return
        for name in ("labels", "annotations"):
            stored["metadata"][name] = (stored["metadata"].get(name) or {}) | fresh["metadata"][name]
        stored["metadata"]["labels"] |= labels
        stored["status"] = fresh["status"] | {
            "conditions": _merged(stored["status"].get("conditions", []), fresh)
        }
        stored["spec"]["taints"] = _without_unreachable(stored)  # others count at registration only
        await self._call("PUT", path, stored)

    async def _heartbeat(self) -> None:
        name = self._machine.name
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        item = objects.lease(name, kubeapi.now_micro_text(), 40)
        try:
            await self._call("PUT", f"{path}/{name}", item)
        except HttpError as exc:
            if exc.status != 404:
                raise
            await self._call("POST", path, item)
        node = await self._call("GET", f"/api/v1/nodes/{name}")
        if objects.ready(node) != "True":
            await self._put_node()

    async def _learn_servers(self) -> None:
        assert self._balancer is not None
        assert self._access is not None
        while True:
            await asyncio.sleep(timing.SERVERS_REFRESH_S)
            try:
                servers = json.loads(await self._access.request("/v1-k3s/apiservers"))
                self._balancer.update([str(server) for server in servers])
            except (HttpError, RequestFailed, ValueError) as exc:
                log.info(f"Failed to retrieve list of apiservers from server: {exc}")
                self._distrust()


def _merged(existing: list[Object], fresh: Object) -> list[Object]:
    """Our conditions, keeping when each last changed; and those that are not the kubelet's."""
    before = {c["type"]: c for c in existing}
    merged = []
    for condition in fresh["status"]["conditions"]:
        old = before.pop(condition["type"], None)
        if old and old["status"] == condition["status"]:
            condition = {**condition, "lastTransitionTime": old["lastTransitionTime"]}
        merged.append(condition)
    return [*merged, *before.values()]


def _without_unreachable(node: Object) -> list[Object]:
    return [t for t in node["spec"].get("taints") or [] if t.get("key") != objects.UNREACHABLE]


def _node_password(path: Path) -> str:
    """Made at the first start, kept for ever."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_file(path, os.urandom(16).hex() + "\n")
    return path.read_text().strip()


def _facts(settings: Settings, machine: Machine) -> objects.NodeFacts:
    """Raises K3sError on a label that a kubelet may not set."""
    labels = {}
    for item in settings.items("node-label"):
        key, _, value = item.partition("=")
        labels[key] = value
    taints = []
    for item in settings.items("node-taint"):
        head, _, effect = item.rpartition(":")
        key, _, value = head.partition("=")
        taints.append({"key": key, "value": value, "effect": effect})
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return objects.NodeFacts(
        name=machine.name,
        addresses=machine.addresses,
        external_addresses=machine.external_addresses,
        labels=labels,
        taints=tuple(taints),
        machine_id=_machine_id(machine.name),
        kernel=platform.release(),
        os_image=_os_name(),
        architecture=arch,
        cpus=os.cpu_count() or 1,
        memory_kib=pages * page // 1024,
    )


def check_labels(settings: Settings) -> None:
    """Raises K3sError for labels that the kubelet refuses to set on itself."""
    for item in settings.items("node-label"):
        key = item.partition("=")[0]
        if key.startswith("node-role.kubernetes.io/"):
            raise K3sError(
                "failed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels specified with "
                f"--node-labels: [{key}]"
            )


def _machine_id(name: str) -> str:
    import hashlib

    return hashlib.sha256(f"simulated {name}".encode()).hexdigest()[:32]


def _os_name() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return "Linux"
    found = (line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME="))
    return next(found, "Linux")


def _kubeconfig(url: str, agent: Path) -> str:
    return f"""apiVersion: v1
kind: Config
clusters:
- cluster: {{server: "{url}", certificate-authority: "{agent}/server-ca.crt"}}
  name: local
contexts:
- context: {{cluster: local, namespace: default, user: user}}
  name: Default
current-context: Default
users:
- name: user
  user: {{client-certificate: "{agent}/client-kubelet.crt", client-key: "{agent}/client-kubelet.key"}}
"""


async def _healthz(request: Request) -> Response:
    return Response(200, b"ok") if request.path == "/healthz" else Response(404, b"404 page not found\n")
