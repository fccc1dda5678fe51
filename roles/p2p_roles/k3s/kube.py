"""How does this program speak with the cluster's Kubernetes API?

Blocking calls for a thread, standard library only, as the cluster's admin with the kubeconfig that k3s
wrote on this server: its CA is pinned, its certificate shown. Objects are plain JSON; who uses them
reads them with care (`reconcile/objects.py`). What may happen is an error with a name: `Conflict`
(somebody else wrote first), `NotFound`, `AlreadyExists`, and `Unreachable` (no answer, or not yet, or no
quorum behind it): an operation that ended so may or may not have been carried out.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from p2p_network.core.errors import RoleError
from p2p_roles.k3s import probe

Json = dict[str, Any]

NODES: Final = "/api/v1/nodes"
PODS: Final = "/api/v1/pods"
CONFIG_MAPS: Final = "/api/v1/namespaces/kube-system/configmaps"
SECRETS: Final = "/api/v1/namespaces/kube-system/secrets"
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
MERGE_PATCH: Final = "application/merge-patch+json"
MAX_ANSWER_BYTES: Final = 64 << 20
_MAX_SHOWN_CHARS: Final = 300


class KubeError(RoleError):
    """The API refused. `status`: its HTTP status, 0 if none came."""

    status = 0


class Conflict(KubeError):
    """Somebody else wrote the object first: read it again."""


class AlreadyExists(KubeError):
    """There is an object of this name."""


class NotFound(KubeError):
    """There is no such object."""


class Unreachable(KubeError):
    """No answer, or none that means anything: the write may or may not have happened."""


class Kube:
    """The API of the k3s server on this machine.

    Args:
        kubeconfig: the admin's, as k3s writes it; read anew for every request, since k3s renews it.
        timeout_s: of one request.
    """

    def __init__(self, kubeconfig: Path, *, timeout_s: float = 8.0) -> None:
        self._kubeconfig = kubeconfig
        self._timeout_s = timeout_s

    def get(self, path: str) -> Json:
        """An object or a list. Raises KubeError."""
        return self._call("GET", path)

    def create(self, path: str, item: Json) -> Json:
        """A new object below the collection `path`; as stored. Raises AlreadyExists, KubeError."""
        return self._call("POST", path, item)

    def replace(self, path: str, item: Json) -> Json:
        """The object at `path`, replaced; as stored. Raises Conflict unless its resourceVersion is the stored
        one, NotFound, KubeError."""
        return self._call("PUT", path, item)

    def patch(self, path: str, change: Json) -> Json:
        """The object at `path`, a merge patch applied (RFC 7396); as stored. Raises Conflict if the patch
        names another resourceVersion, NotFound, KubeError."""
        return self._call("PATCH", path, change, content_type=MERGE_PATCH)

    def delete(self, path: str, *, version: str = "") -> None:
        """Delete the object at `path`, only in this resourceVersion if one is given. Raises Conflict,
        NotFound, KubeError."""
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if version:
            options["preconditions"] = {"resourceVersion": version}
        self._call("DELETE", path, options)

    def etcd_members(self) -> list[Json] | None:
        """The embedded etcd's members; None where there is another datastore. Raises KubeError."""
        try:
            members = self._call("GET", "/db/info").get("members")
        except KubeError as exc:
            if exc.status in (400, 404):  # "etcd datastore disabled"
                return None
            raise
        return [m for m in members if isinstance(m, dict)] if isinstance(members, list) else []

    def _call(
        self, method: str, path: str, body: Json | None = None, *, content_type: str = "application/json"
    ) -> Json:
        try:
            address, context = probe.admin_access(self._kubeconfig)
        except probe.NotReady as exc:
            raise Unreachable(str(exc), hint="k3s writes it when it is up: kairos-p2p wait ready") from exc
        connection = http.client.HTTPSConnection(
            address.hostname or "127.0.0.1", address.port or 443, timeout=self._timeout_s, context=context
        )
        try:
            raw = json.dumps(body).encode() if body is not None else None
            headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if raw else {})
            connection.request(method, path, raw, headers)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"{method} {path}: the Kubernetes API does not answer: {exc}") from exc
        finally:
            connection.close()
        try:
            document = json.loads(answer)
        except ValueError as exc:
            raise _refusal(method, path, response.status, answer[:200].decode(errors="replace"), "") from exc
        if not isinstance(document, dict):
            raise _refusal(method, path, response.status, "its answer is no JSON object", "")
        if response.status >= 300:
            message, reason = document.get("message", ""), document.get("reason", "")
            raise _refusal(method, path, response.status, str(message), str(reason))
        return document


def below(collection: str, name: str) -> str:
    """The path of one object of a collection."""
    return f"{collection}/{quote(name, safe='')}"


def eviction_of(namespace: str, name: str) -> str:
    """Where the eviction of a pod is asked for."""
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}/eviction"


def _refusal(method: str, path: str, status: int, message: str, reason: str) -> KubeError:
    text = "".join(c if c.isprintable() else " " for c in message)[:_MAX_SHOWN_CHARS]
    kind: type[KubeError] = KubeError
    if status == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
    elif status == 404:
        kind = NotFound
    elif status >= 500 or status == 429 or status < 300:
        kind = Unreachable
    error = kind(f"{method} {path}: the Kubernetes API answers {status}: {text}")
    error.status = status
    return error
