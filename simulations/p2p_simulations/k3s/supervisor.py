"""What does a server tell nodes that join? k3s's own part of port 6443; the rest is the Kubernetes API.

Who may ask: anybody for `/ping` and `/cacerts`; agents and servers for what an agent needs; only servers
for the CA's keys. A wrong password is 401, the right password of too small a role 403.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from typing import Any

from p2p_simulations.k3s import log, objects, pki, tokens
from p2p_simulations.k3s.datastore import Datastore
from p2p_simulations.k3s.errors import HttpError, Unavailable
from p2p_simulations.k3s.https import Request, Response, json_response
from p2p_simulations.k3s.kubeapi import KubeApi, create
from p2p_simulations.k3s.layout import BOOTSTRAP_FILES, Layout

AGENT, SERVER, NODES = "k3s:agent", "k3s:server", "system:nodes"
SECRETS = next(kind for kind in objects.KINDS if kind.plural == "secrets")


class Supervisor:
    """The handler of port 6443.

    Args:
        config: document of `/v1-k3s/config`.
        servers: host:port of every server's API.
        snapshot: carries out an etcd-snapshot request; None without etcd.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        node_name: str,
        config: dict[str, Any],
        servers: Callable[[], list[str]],
    ) -> None:
        self._layout = layout
        self._node_name = node_name
        self._config = config
        self._servers = servers
        self.is_etcd = False
        self.store: Datastore | None = None
        self.api: KubeApi | None = None
        self.snapshot: Callable[[dict[str, Any]], Any] | None = None
        self._accounts = tokens.read_passwd(layout.passwd.read_text())

    async def handle(self, request: Request) -> Response:
        try:
            return await self._route(request)
        except HttpError as exc:
            if exc.status != 503:
                log.error(f"Sending HTTP/1.1 {exc.status} response to {request.remote}: {exc}")
            return json_response(exc.status, objects.status(exc.status, str(exc)))
        except Unavailable as exc:
            return json_response(500, objects.status(500, f"failed to get etcd MemberList: {exc}"))

    async def _route(self, request: Request) -> Response:
        path = request.path.rstrip("/") or "/"
        match path:
            case "/ping":
                return Response(200, b"pong")
            case "/cacerts":
                return Response(200, (self._layout.tls / "server-ca.crt").read_bytes())
            case "/db/info":
                if not self.is_etcd:
                    raise HttpError(400, "etcd datastore disabled")
                if request.remote not in ("127.0.0.1", "::1"):
                    self._require(request, SERVER)
                return self._members()
            case "/db/snapshot":
                self._require(request, SERVER)
                if self.snapshot is None:
                    raise HttpError(400, "etcd datastore disabled")
                return json_response(200, self.snapshot(request.json()))
            case "/v1-k3s/server-bootstrap":
                self._require(request, SERVER)
                if not self.is_etcd:
                    log.warning(
                        f"Received HTTP bootstrap request from {request.remote}, "
                        "but embedded etcd is not enabled."
                    )
                    raise HttpError(400, "etcd disabled")
                log.info(f"Serving HTTP bootstrap from datastore for {request.remote}")
                return json_response(200, self._bootstrap())
        if path.startswith("/v1-k3s/"):
            self._require(request, AGENT, NODES)
            return await self._for_nodes(request, path.removeprefix("/v1-k3s/"))
        if self.api is None:
            raise HttpError(503, "apiserver not ready")
        return await self.api.handle(request)

    async def _for_nodes(self, request: Request, what: str) -> Response:
        tls = self._layout.tls
        match what:
            case "config":
                return json_response(200, self._config)
            case "apiservers":
                return json_response(200, self._servers())
            case "readyz":
                if self.api is None or not self.api.up:
                    raise HttpError(503, "runtime core not ready")
                return Response(200, b"ok")
            case "client-ca.crt":
                return Response(200, (tls / "client-ca.crt").read_bytes())
            case "server-ca.crt":
                return Response(200, (tls / "server-ca.crt").read_bytes())
            case "client-kubelet.crt":
                name = await self._node(request)
                return await self._sign(request, "client-ca", f"system:node:{name}", NODES, "client", [])
            case "serving-kubelet.crt":
                name = await self._node(request)
                names = [name, "localhost", "127.0.0.1", "::1"]
                names += [a for a in request.headers.get("k3s-node-ip", "").split(",") if a]
                return await self._sign(request, "server-ca", name, "", "server", names)
            case _:
                raise HttpError(404, "the server could not find the requested resource")

    def _groups(self, request: Request) -> tuple[str, ...]:
        """Of whoever asks. Raises HttpError 401 on a wrong password."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except ValueError:
                raise HttpError(401, "not authorized") from None
            account = self._accounts.get(user)
            if account is None or not hmac.compare_digest(account.password.encode(), password.encode()):
                log.error(
                    f"Failed to authenticate request from {request.remote}: "
                    "invalid username/password combination"
                )
                raise HttpError(401, "not authorized")
            return (account.group,)
        return request.groups

    def _require(self, request: Request, *groups: str) -> None:
        if not set(groups) & set(self._groups(request)):
            raise HttpError(403, "forbidden")

    def _members(self) -> Response:
        store = self.store
        members = store.members() if store else ()
        if not members or store is None or store.fault():
            raise HttpError(500, "failed to get etcd MemberList: etcd not started")
        return json_response(
            200,
            {
                "members": [
                    {
                        "ID": m.id,
                        **({"name": m.name} if m.name else {}),
                        "peerURLs": [m.peer_url],
                        **({"clientURLs": [m.client_url]} if m.client_url else {}),
                        **({"isLearner": True} if m.learner else {}),
                    }
                    for m in members
                ]
            },
        )

    def _bootstrap(self) -> dict[str, Any]:
        out = {}
        for key, name in BOOTSTRAP_FILES.items():
            path = self._layout.server / name
            if path.exists():
                content = base64.b64encode(path.read_bytes()).decode()
                out[key] = {"Timestamp": "1970-01-01T00:00:00Z", "Content": content}
        return out

    async def _sign(
        self, request: Request, ca: str, common_name: str, organization: str, usages: str, names: list[str]
    ) -> Response:
        order = {
            "op": "issue",
            "csr": base64.b64encode(request.body).decode(),
            "ca": str(self._layout.tls / ca),
            "common_name": common_name,
            "organization": organization,
            "usages": usages,
            "names": names,
        }
        try:
            answer = await asyncio.to_thread(pki.ask, order)
        except RuntimeError as exc:
            raise HttpError(400, str(exc)) from exc
        return Response(200, str(answer["chain"]).encode())

    # ---- node passwords

    async def _node(self, request: Request) -> str:
        """The node's name, once its password was checked. Raises HttpError."""
        name = request.headers.get("k3s-node-name", "").lower()
        password = request.headers.get("k3s-node-password", "")
        if not name or not password:
            raise HttpError(400, "node name not set" if not name else "node password not set")
        if self.api is None or not self.api.up:
            if name == self._node_name:  # our own kubelet, before there is an API
                own = self._layout.node_password.read_text().strip()
                if not hmac.compare_digest(own, password):
                    raise HttpError(403, "unable to verify local node password")
                return name
            raise HttpError(503, "runtime core not ready")
        await self.ensure_password(name, password)
        return name

    async def ensure_password(self, name: str, password: str) -> None:
        """Keep the first password that a node name came with; refuse any other. Raises HttpError 403."""
        store = self.store
        assert store is not None
        await store.barrier()
        secret_name = f"{name}.node-password.k3s"
        for _ in range(2):
            stored = store.state.get(SECRETS.prefix("kube-system") + secret_name)
            if stored is not None:
                salt, _, digest = base64.b64decode(stored["data"]["hash"]).decode().partition(":")
                if not hmac.compare_digest(digest, _digest(salt, password)):
                    raise HttpError(403, f"unable to verify password for node {name}: hash does not match")
                return
            salt = os.urandom(8).hex()
            value = base64.b64encode(f"{salt}:{_digest(salt, password)}".encode()).decode()
            secret = {
                "kind": "Secret",
                "apiVersion": "v1",
                "metadata": {"name": secret_name, "namespace": "kube-system"},
                "type": "k3s.cattle.io/node-password",
                "immutable": True,
                "data": {"hash": value},
            }
            try:
                await create(store, SECRETS, secret)
            except HttpError:
                continue  # another server was faster: verify against what it stored
            return


def _digest(salt: str, password: str) -> str:
    return hashlib.sha256(f"{salt}:{password}".encode()).hexdigest()


def restore(layout: Layout, raw: bytes) -> None:
    """Write what `/v1-k3s/server-bootstrap` answered below `server/`. Raises ValueError."""
    document = json.loads(raw)
    for key, name in BOOTSTRAP_FILES.items():
        if key in document:
            path = layout.server / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(base64.b64decode(document[key]["Content"]))
            path.chmod(0o600)
